"""A private PostgreSQL, and a database of its own for each test."""

from __future__ import annotations

import itertools
import os

import psycopg
import pytest

from warrener.outbox import PostgresOutbox
from warrener.testing.postgresql import PostgreSQLMissing, PrivatePostgreSQL

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def private_postgresql():
    """The private server of this run, as the previous test left it; tests take `postgresql`."""
    try:
        server = PrivatePostgreSQL()
        server.__enter__()
    except PostgreSQLMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield server
    server.close()


@pytest.fixture
def postgresql(private_postgresql):
    """A private server to inflict faults on, running and thawed when the test begins."""
    private_postgresql.thaw()
    private_postgresql.start()
    yield private_postgresql
    private_postgresql.thaw()


@pytest.fixture
def database_dsn(postgresql):
    """A place without tables: a schema of its own, which is made sooner than a database."""
    schema = f"test_{next(_numbers)}"
    with psycopg.connect(postgresql.dsn, autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {schema}")
    return f"{postgresql.dsn}?options=-c%20search_path%3D{schema}"


@pytest.fixture
def outbox_dsn(database_dsn):
    """A database with the outbox's tables."""
    PostgresOutbox(database_dsn).create()
    return database_dsn
