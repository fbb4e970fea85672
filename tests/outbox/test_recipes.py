"""Each piece of code of docs/outbox.md runs as it stands there, with this machine's broker and database."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import warrener
from tests.outbox.rows import LEASE, claim, insert
from warrener.outbox import SQLiteOutbox, outbox_at
from warrener.outbox.records import SetAside, Settlement, Work
from warrener.testing import EmbeddedBroker

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "outbox.md").read_text()


def blocks(heading, language):
    """The blocks of one language under a heading, without those under the headings below it."""
    section = re.split(rf"^##+ {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    section = re.split(r"^##+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_no_program_of_the_page_is_without_a_test():
    """Whoever adds one adds the line that runs it, in the test named after the heading."""
    programs = Counter()
    for section in re.split(r"^##+ ", PAGE, flags=re.MULTILINE):
        programs[section.partition("\n")[0]] += len(re.findall(r"^```python$", section, re.MULTILINE))

    assert +programs == {
        "Three ways in": 3, "Django in a project": 4, "FastAPI with SQLAlchemy": 2, "A cron job": 1,
        "A consumer that must not act twice": 1,
    }  # fmt: skip


class Shell:
    """Runs what the page says in a folder of its own, with `places` of the page replaced by those of this machine."""

    def __init__(self, folder, broker, places):
        self.folder = folder
        self.broker = broker
        self.places = places
        folders = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        source = str(Path(warrener.__file__).parents[1])
        self.environ = os.environ | {"RABBITMQ_URL": broker.url, "PATH": folders, "PYTHONPATH": source}

    def here(self, text):
        for place, here in self.places.items():
            text = text.replace(place, here)
        return text

    def run(self, *command, code=None, status=0):
        done = subprocess.run(
            [self.here(each) for each in command], cwd=self.folder, env=self.environ, input=code and self.here(code),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout

    def python(self, code):
        return self.run("python", "-c", code)

    def console(self, block, *, skip=("pip install",)):
        """Run the lines of a block that are commands."""
        shown = ""
        for line in block.splitlines():
            if line.startswith("$ ") and not line.startswith(tuple(f"$ {each}" for each in skip)):
                shown += self.run("sh", "-c", line[2:])
        return shown

    def write(self, name, code):
        (self.folder / name).write_text(self.here(code))

    def relay(self, block, confirmed):
        """Run the relay as the block says, until it has confirmed that many; it prints what the block shows."""
        (line,) = [line for line in block.splitlines() if "outbox relay" in line]
        shown = [line for line in block.splitlines() if line.startswith(("publishing", "12:00"))]
        command = ["sh", "-c", self.here(f"exec {line[2:]}")]
        with subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, text=True) as program:
            printed = []
            for line in program.stdout:
                printed.append(line.rstrip("\n"))
                if f"{confirmed} confirmed, 0 waiting, 0 set aside" in line:
                    break
            program.send_signal(signal.SIGINT)
            program.communicate(timeout=30)
        assert program.returncode == 0
        assert [neutral(line) for line in printed[:3]] == [neutral(line) for line in shown[:3]]
        assert re.fullmatch(r"12:00:01 \d confirmed, 0 waiting, 0 set aside", shown[3])


def neutral(line):
    """A line of the relay, whatever the time, the port and the heartbeat."""
    return re.sub(r"\d\d:\d\d:\d\d|[\w.]+:\d+/|heartbeat \d+ s", "*", line)


@pytest.fixture
def broker():
    with EmbeddedBroker.in_thread() as broker:
        yield broker


@pytest.fixture
def dsn(postgresql, database_dsn):
    """A database of its own: the recipes connect in their own ways, not all of which take `options`."""
    return postgresql.create_database("recipe_" + database_dsn.rpartition("_")[2])


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    """The outbox of a recipe: the file of the page, or a PostgreSQL database."""
    return None if request.param == "sqlite" else request.getfixturevalue("dsn")


def test_three_ways_in(tmp_path, broker, place):
    """`enqueue`, `add` and plain SQL, twice: four messages, of which a relay publishes three."""
    places = {} if place is None else {"app.db": place, "postgresql://localhost/shop": place}
    shell = Shell(tmp_path, broker, places)
    first, with_sqlite, with_postgresql = blocks("Three ways in", "python")
    _, init, inserts, relay = blocks("Three ways in", "console")
    (statement,) = blocks("Three ways in", "sql")
    assert "is on disk at position 1" in shell.python(first)
    shell.console(init)
    shell.python(with_sqlite if place is None else with_postgresql)
    if place is None:
        with closing(sqlite3.connect(tmp_path / "app.db")) as db:
            db.executescript(statement)
    else:
        with psycopg.connect(place) as db:
            db.execute(statement)
    shell.console(inserts, skip=("psql",) if place is None else ("sqlite3",))

    listed = shell.console(relay, skip=("warrener outbox relay",))
    assert [line.split()[1] for line in listed.splitlines()] == ["STATE", "waiting", "waiting", "waiting"]
    shell.relay(relay, 3)
    assert sorted(broker.messages("tasks")) == [b"book", b"resize 7", b"resize 7", b"resize 8"]


def test_the_outbox_of_the_first_program_may_be_in_postgresql(tmp_path, broker, dsn):
    """As its comment says."""
    outbox_at(dsn).create()
    first, *_ = blocks("Three ways in", "python")
    given = 'SQLiteOutbox("tasks.db")  # or PostgresOutbox("postgresql://host/shop")'
    assert given in first
    shell = Shell(tmp_path, broker, {given: f'PostgresOutbox("{dsn}")'})

    assert "is on disk at position 1" in shell.python(first)
    assert broker.messages("tasks") == [b"resize 7"]


def test_what_becomes_of_a_row(tmp_path, broker):
    """Row 17 was set aside: a person looks, and decides."""
    store = SQLiteOutbox(tmp_path / "tasks.db")._make_store()
    store.open()
    insert(store, *["a"] * 18)
    row = claim(store)[0]
    aside = SetAside(1, row.claim, 1, False, "Unroutable", "returned: NO_ROUTE", holds=True)
    store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={row.claim: ()})), "relay", LEASE)
    store._db.execute("UPDATE warrener_outbox SET position = 20 WHERE position = 17")
    store._db.execute("UPDATE warrener_outbox_set_aside SET position = 17")
    store.close()
    (block,) = blocks("What becomes of a row", "console")

    shown = Shell(tmp_path, broker, {}).console(block)
    assert "held by 17" in shown
    assert "1 row can be published again at once" in shown
    assert "1 row deleted" in shown
    assert json.loads(shown.splitlines()[-1])["set_aside"] == 0


def test_django_in_five_minutes(tmp_path, broker):
    """Each block is pasted into a shell, but for the lines that make the environment."""
    shell = Shell(tmp_path, broker, {})
    make_broker, environment, queue, program, relay = blocks("Django in five minutes", "sh")
    (shown,) = blocks("Django in five minutes", "text")
    assert make_broker == "make broker\n"
    assert [line.split()[0] for line in environment.splitlines()] == [".", "pip", "mkdir", "export"]

    assert shell.run("sh", "-c", queue) == "the queue is there\n"
    printed = shell.run("sh", "-c", program).splitlines()
    assert printed[-3] == "order 1 is stored, and so is its message"
    assert [line.split()[1] for line in printed[-2:]] == ["STATE", "waiting"]
    assert shell.python((tmp_path / "shop.py").read_text()) == "order 2 is stored, and so is its message\n"
    shell.relay(f"$ {relay}{shown}", 2)
    assert broker.messages("orders") == [b"order 1", b"order 2"]


def test_django_in_a_project(tmp_path, broker, place):
    """With a migration, models and views; the migration can be reversed, and done again."""
    dsn = {} if place is None else {"db.sqlite3": place}
    shell = Shell(tmp_path, broker, {"amqp://guest:guest@localhost/": broker.url} | dsn)
    start, migration, go = blocks("Django in a project", "console")
    model, migration_file, script, plain = blocks("Django in a project", "python")
    *_, queue, _, _ = blocks("Django in five minutes", "sh")
    shell.console(start)
    settings = tmp_path / "shop" / "settings.py"
    text = settings.read_text().replace("INSTALLED_APPS = [", 'INSTALLED_APPS = [\n    "orders",')
    if place is not None:
        parts = psycopg.conninfo.conninfo_to_dict(place)
        database = {
            "ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"],
            "HOST": parts["host"], "PORT": parts.get("port", ""), "PASSWORD": parts.get("password", ""),
        }  # fmt: skip
        text += f"\nDATABASES = {{'default': {database!r}}}\n"
    settings.write_text(text)
    shell.write("orders/models.py", model)
    shell.console(migration)
    if place is not None:
        assert migration_file.count("-- DROP ") == 2
        migration_file = migration_file.replace("-- DROP ", "DROP ")
    shell.write("orders/migrations/0002_outbox.py", migration_file)
    shell.write("order.py", script)
    shell.run("sh", "-c", queue)
    listed = shell.console(go, skip=("warrener outbox relay",))
    assert listed.splitlines()[-1].split()[1:3] == ["waiting", "customer-42"]
    # In a program of the server: the set-up is that of the script.
    shell.python(script.partition("from django.db")[0] + plain)

    shell.relay(go, 2)
    assert broker.messages("orders") == [b"1", b"book"]
    assert "No changes detected" in shell.run("python", "manage.py", "makemigrations", "--check", "--dry-run")
    # Reversed, it leaves nothing behind that stops a second time.
    assert "python manage.py migrate orders 0001" in PAGE
    shell.run("python", "manage.py", "migrate", "orders", "0001")
    shell.run("python", "manage.py", "migrate", "orders")
    assert shell.run("warrener", "outbox", "ls", "db.sqlite3").count("\n") == 1  # the head of an empty table


REQUESTS = """
import anyio, httpx
from shop import app, outbox

async def main():
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
            (await http.post("/orders/book")).raise_for_status()
        {more}
        while (await anyio.to_thread.run_sync(outbox.entries)):
            await anyio.sleep(0.02)

anyio.run(main)
"""


def test_fastapi_with_sqlalchemy(tmp_path, broker, place):
    """A request stores the order and its message, and the relay of the same process publishes it."""
    init, _ = blocks("FastAPI with SQLAlchemy", "console")
    program, asynchronous = blocks("FastAPI with SQLAlchemy", "python")
    if place is None:
        shell = Shell(tmp_path, broker, {
            "postgresql+psycopg://localhost/shop": "sqlite:///shop.db", "postgresql://localhost/shop": "shop.db",
            "PostgresOutbox": "SQLiteOutbox",
        })  # fmt: skip
    else:
        with_driver = place.replace("postgresql://", "postgresql+psycopg://")
        shell = Shell(tmp_path, broker, {"postgresql+psycopg://localhost/shop": with_driver, "postgresql://localhost/shop": place})  # fmt: skip
    shell.console(init)
    shell.write("shop.py", program)
    shell.write("asynchronous.py", asynchronous)
    more = "pass" if place is None else "from asynchronous import order; await order('paper')"
    shell.python(REQUESTS.format(more=more))

    assert broker.messages("orders") == [b"book", b"paper"][: 1 if place is None else 2]


def test_a_cron_job(tmp_path, broker):
    """Twice, as a cron job runs."""
    (program,) = blocks("A cron job", "python")
    shell = Shell(tmp_path, broker, {"/var/lib/reports": str(tmp_path)})
    shell.python(program)
    shell.python(program)

    assert [entry.body for entry in SQLiteOutbox(tmp_path / "outbox.db").entries()] == [b"nightly"] * 2


def test_a_consumer_that_must_not_act_twice(dsn):
    """A second copy is acknowledged, and nothing else."""
    (table,) = blocks("A consumer that must not act twice", "sql")
    (program,) = blocks("A consumer that must not act twice", "python")
    handled, acknowledged = [], []

    class Channel:
        basic_ack = acknowledged.append

    with psycopg.connect(dsn) as connection:
        connection.execute(table)
        for tag, message_id in enumerate(("a", "b", "a")):
            names = {
                "connection": connection, "channel": Channel, "delivery_tag": tag, "message_id": message_id,
                "body": message_id, "handle": handled.append,
            }  # fmt: skip
            exec(program, names)  # noqa: S102 - our own page

    assert (handled, acknowledged) == (["a", "b"], [0, 1, 2])
