"""The tables of an outbox, version 1, for both databases; docs/outbox.md prints them from here.

The columns of `warrener_outbox` up to `body` are for everybody: any program may insert a row with plain SQL. The other
columns and tables are the relays'.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["APPLICATION_ID", "POSTGRES_DDL", "SLOTS", "SQLITE_DDL", "VERSION", "ddl"]

#: Written to `warrener_outbox_meta`; a store refuses a newer one and migrates an older one.
VERSION: Final = 1
#: SQLite's application_id of a file that holds nothing but an outbox: "wrnr".
APPLICATION_ID: Final = 0x77726E72
#: PostgreSQL keeps the rows in this number of partitions, which are filled and emptied in turn.
SLOTS: Final = 4

SQLITE_DDL: Final = (
    """\
CREATE TABLE warrener_outbox_meta (schema_version INTEGER NOT NULL)""",
    f"""\
INSERT INTO warrener_outbox_meta (schema_version) VALUES ({VERSION})""",  # noqa: S608 - a constant
    """\
CREATE TABLE warrener_outbox (
    position           INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id         TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))),
    key                TEXT,
    exchange           TEXT NOT NULL DEFAULT '',
    routing_key        TEXT NOT NULL DEFAULT '',
    properties         TEXT NOT NULL DEFAULT '{}',
    stored_at          REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0),
    attempts           INTEGER NOT NULL DEFAULT 0,
    nacks              INTEGER NOT NULL DEFAULT 0,
    possible_duplicate INTEGER NOT NULL DEFAULT 0,
    not_before         REAL,
    last_error         TEXT,
    body               BLOB NOT NULL
)""",
    """\
CREATE INDEX warrener_outbox_key ON warrener_outbox (key, position) WHERE key IS NOT NULL""",
    """\
CREATE TABLE warrener_outbox_set_aside (
    position           INTEGER PRIMARY KEY,
    message_id         TEXT NOT NULL,
    key                TEXT,
    exchange           TEXT NOT NULL,
    routing_key        TEXT NOT NULL,
    properties         TEXT NOT NULL,
    stored_at          REAL NOT NULL,
    attempts           INTEGER NOT NULL,
    possible_duplicate INTEGER NOT NULL,
    set_aside_at       REAL NOT NULL,
    reason             TEXT NOT NULL,
    last_error         TEXT NOT NULL,
    holds              INTEGER NOT NULL,
    body               BLOB NOT NULL
)""",
    """\
CREATE INDEX warrener_outbox_held ON warrener_outbox_set_aside (key) WHERE holds""",
    """\
CREATE TABLE warrener_outbox_relay (
    token        TEXT PRIMARY KEY,
    owner        TEXT NOT NULL,
    leased_until REAL NOT NULL
)""",
    """\
CREATE TABLE warrener_outbox_claim (
    claim     INTEGER PRIMARY KEY AUTOINCREMENT,
    token     TEXT NOT NULL,
    positions TEXT NOT NULL
)""",
)

POSTGRES_DDL: Final = (
    """\
CREATE TABLE warrener_outbox_meta (schema_version integer NOT NULL)""",
    f"""\
INSERT INTO warrener_outbox_meta (schema_version) VALUES ({VERSION})""",  # noqa: S608 - a constant
    """\
CREATE SEQUENCE warrener_outbox_position""",
    f"""\
CREATE SEQUENCE warrener_outbox_slot MINVALUE 0 MAXVALUE {SLOTS - 1} START 0""",
    """\
SELECT setval('warrener_outbox_slot', 0)""",
    """\
CREATE TABLE warrener_outbox (
    slot               smallint NOT NULL DEFAULT pg_sequence_last_value('warrener_outbox_slot'),
    position           bigint NOT NULL DEFAULT nextval('warrener_outbox_position'),
    transaction        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    message_id         text NOT NULL DEFAULT gen_random_uuid()::text,
    key                text,
    exchange           text NOT NULL DEFAULT '',
    routing_key        text NOT NULL DEFAULT '',
    properties         text NOT NULL DEFAULT '{}',
    stored_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts           integer NOT NULL DEFAULT 0,
    nacks              integer NOT NULL DEFAULT 0,
    possible_duplicate boolean NOT NULL DEFAULT false,
    not_before         timestamptz,
    last_error         text,
    body               bytea NOT NULL
) PARTITION BY LIST (slot)""",
    *(
        f"""\
CREATE TABLE warrener_outbox_{slot} PARTITION OF warrener_outbox FOR VALUES IN ({slot})"""
        for slot in range(SLOTS)
    ),
    """\
CREATE INDEX warrener_outbox_order ON warrener_outbox (position)""",
    """\
CREATE INDEX warrener_outbox_key ON warrener_outbox (key, position) WHERE key IS NOT NULL""",
    """\
CREATE FUNCTION warrener_outbox_notify() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN NOTIFY warrener_outbox; RETURN NULL; END'""",
    """\
CREATE TRIGGER warrener_outbox_notify AFTER INSERT ON warrener_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION warrener_outbox_notify()""",
    """\
CREATE TABLE warrener_outbox_set_aside (
    position           bigint PRIMARY KEY,
    message_id         text NOT NULL,
    key                text,
    exchange           text NOT NULL,
    routing_key        text NOT NULL,
    properties         text NOT NULL,
    stored_at          timestamptz NOT NULL,
    attempts           integer NOT NULL,
    possible_duplicate boolean NOT NULL,
    set_aside_at       timestamptz NOT NULL,
    reason             text NOT NULL,
    last_error         text NOT NULL,
    holds              boolean NOT NULL,
    body               bytea NOT NULL
)""",
    """\
CREATE INDEX warrener_outbox_held ON warrener_outbox_set_aside (key) WHERE holds""",
    """\
CREATE TABLE warrener_outbox_relay (
    token        text PRIMARY KEY,
    owner        text NOT NULL,
    leased_until timestamptz NOT NULL
)""",
    """\
CREATE TABLE warrener_outbox_claim (
    claim     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token     text NOT NULL,
    positions bigint[] NOT NULL
)""",
)


def ddl(database: Literal["sqlite", "postgresql"]) -> str:
    """Return the statements that make the tables of an outbox, for a migration of the application's own."""
    statements = SQLITE_DDL if database == "sqlite" else POSTGRES_DDL
    return "".join(f"{statement};\n\n" for statement in statements)
