"""``warrener outbox``: tables for people, JSON for programs, and a relay for programs that only insert."""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.outbox.rows import LEASE, claim, insert
from warrener._cli.main import main
from warrener._cli.outbox import _what_is_left
from warrener.outbox import SQLiteOutbox, ddl, outbox_at
from warrener.outbox.records import SetAside, Settlement, Work
from warrener.testing import EmbeddedBroker


@pytest.fixture
def path(tmp_path):
    """A file with a set-aside row, the row that it holds up, and a free one."""
    path = tmp_path / "tasks.db"
    store = SQLiteOutbox(path)._make_store()
    store.open()
    insert(store, "a", "a", None, body=b"secret \x1b[31m")
    number = claim(store)[0].claim
    aside = SetAside(1, number, 1, False, "Unroutable", "returned: NO_ROUTE", holds=True)
    store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={number: ()})), "relay", LEASE)
    store.close()
    return path


def run(*arguments):
    return main(["outbox", *map(str, arguments)])


def test_ls_prints_a_table_without_bodies(path, monkeypatch, capsys):
    """One line for each row; what a body holds is shown only on demand, and never moves the cursor."""
    monkeypatch.setenv("COLUMNS", "200")
    assert run("ls", path) == 0
    table = capsys.readouterr().out
    assert [line.split()[:2] for line in table.splitlines()] == [
        ["POSITION", "STATE"], ["1", "set"], ["2", "waiting"], ["3", "waiting"],
    ]  # fmt: skip
    assert table.splitlines()[1].startswith("1         set aside  a")
    assert [line.split("  ")[-1] for line in table.splitlines()[1:3]] == [
        "Unroutable: returned: NO_ROUTE", "held by 1",
    ]  # fmt: skip
    assert "secret" not in table

    assert run("ls", path, "--state", "set_aside", "--body") == 0
    assert r"1: secret \x1b[31m" in capsys.readouterr().out


def test_a_long_reason_ends_at_the_edge_of_the_terminal(path, monkeypatch, capsys):
    """It is one line without control characters; `show` and --json have all of it. An age that nobody knows is "?"."""
    error = "x" * 300 + "\x1b[31m\n" + "y" * 100
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "UPDATE warrener_outbox_set_aside SET last_error = ?, stored_at = '2026-11-26'", ("\x1b[31m" + error,)
        )
    for columns in (60, 160, 220):
        monkeypatch.setenv("COLUMNS", str(columns))
        run("ls", path)
        line = capsys.readouterr().out.splitlines()[1]
        assert r"Unroutable: \x1b[31mx" in line
        assert line.endswith("x…")
        assert len(line) == max(columns, line.index("Unroutable") + 60)
        assert "  ?  " in line

    run("show", path, 1)
    assert r"\n" + "y" * 100 in capsys.readouterr().out
    run("ls", path, "--json")
    first, second, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["last_error"], first["stored_at"]) == ("\x1b[31m" + error, None)
    assert second["held_by"] == 1


def test_json_has_every_column(path, capsys):
    """A body that is no text comes as base64."""
    assert run("show", path, 1, 3, "--json", "--body") == 0
    first, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["state"], first["last_error"], first["body"]) == (
        "set_aside",
        "returned: NO_ROUTE",
        "secret \x1b[31m",
    )
    assert third["key"] is None


def test_retry_and_drop_say_how_many(path, capsys):
    """And name each ID that matched nothing, with status 1; an ID that is given twice is one row."""
    assert run("retry", path, "--all") == 0
    assert run("drop", path, 1) == 0
    assert run("drop", path, 2, 2, 1, "nobody's") == 1
    assert run("retry", path) == run("drop", path) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "1 row can be published again at once; a relay does that", "1 row deleted", "1 row deleted",
    ]  # fmt: skip
    assert err.splitlines() == [
        "1: there is no such row", "nobody's: there is no such row", "warrener outbox retry: give IDs, or --all",
        "warrener outbox drop: give IDs, or --all",
    ]  # fmt: skip


def test_all_set_aside_rows_can_be_dropped_at_once(path, capsys):
    """The other rows stay."""
    assert run("drop", path, "--all") == 0
    assert capsys.readouterr().out == "1 row deleted\n"
    assert [(entry.position, entry.held_by) for entry in SQLiteOutbox(path).entries()] == [(2, None), (3, None)]


def test_retry_says_of_each_row_why_it_stays(path, capsys):
    """A row that waits, one that is held up by another one, and one that a relay has."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO warrener_outbox (position, routing_key, body) VALUES (-5, 'q', 'x')")
        db.execute("INSERT INTO warrener_outbox_claim (token, positions) VALUES ('another', '[3]')")
    assert run("retry", path, -5, 2, 3) == 1
    out, err = capsys.readouterr()
    assert out == "0 rows can be published again at once\n"
    assert err.splitlines() == [
        "-5: not set aside: it waits for a relay",
        "2: not set aside: it waits for row 1 of the same key, which is set aside; retry or drop that row",
        "3: not set aside: a relay has claimed it",
    ]


def test_a_row_that_is_no_message_is_not_promised(path, capsys):
    """Retried as it is, a relay sets it aside again."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE warrener_outbox_set_aside SET reason = 'InvalidRow'")
    assert run("retry", path, "--all") == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "set aside as invalid before: row 1; a relay sets such a row aside again, unless you have corrected its columns"
    )


def test_many_rows_that_are_no_message_are_ten_positions_and_a_number(path, capsys):
    """The line stays readable."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE warrener_outbox_set_aside SET reason = 'InvalidRow'")
        db.executemany(
            "INSERT INTO warrener_outbox_set_aside SELECT ?, message_id, key, exchange, routing_key, properties, stored_at,"
            " attempts, possible_duplicate, set_aside_at, reason, last_error, holds, body FROM warrener_outbox_set_aside"
            " WHERE position = 1", [(position,) for position in range(11, 22)],
        )  # fmt: skip
    assert run("retry", path, "--all") == 0
    assert "before: rows 1, 11, 12, 13, 14, 15, 16, 17, 18, 19 and 2 more; " in capsys.readouterr().out


def test_a_message_id_that_is_a_number_names_its_row(path, capsys):
    """A number is a position first; what no position can be is a message id."""
    with closing(sqlite3.connect(path)) as db, db:
        for message_id in ("1", "12345", "007", "-0", "9" * 30):
            db.execute("INSERT INTO warrener_outbox (message_id, body) VALUES (?, 'x')", (message_id,))
        db.execute(f"INSERT INTO warrener_outbox (position, body) VALUES ({2**63 - 1}, 'x')")  # noqa: S608
    assert run("show", path, 1, 12345, "007", "9" * 30, 2**63 - 1, "--json") == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["position"], row["message_id"]) for row in shown[1:4]] == [
        (6, "007"),
        (8, "9" * 30),
        (2**63 - 1, shown[3]["message_id"]),
    ]
    assert shown[0]["position"] == 1
    assert (shown[4]["position"], shown[4]["message_id"]) == (5, "12345")
    assert run("drop", path, 12345, "-0", 99) == 1
    assert capsys.readouterr() == ("2 rows deleted\n", "99: there is no such row\n")


def test_a_reason_has_room_before_long_ids_and_keys(path, monkeypatch, capsys):
    """The words that begin each error of a kind are left out; the message id is shortened first, then the routing key."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "UPDATE warrener_outbox_set_aside SET routing_key = ?, reason = 'PublishRefused', last_error = 'the broker"
            " refused it: the broker closed the channel; the exchange does not exist'", ("r" * 200,),
        )  # fmt: skip
    monkeypatch.setenv("COLUMNS", "150")
    assert run("ls", path, "--state", "set_aside") == 0
    _, line, note = capsys.readouterr().out.splitlines()
    assert line.endswith("PublishRefused: the exchange does not exist")
    assert f"  {'r' * 35}…  " in line
    assert note == "… stands for text that is left out; `warrener outbox show` prints all of a row"
    monkeypatch.setenv("COLUMNS", "140")
    assert run("ls", path, "--state", "set_aside") == 0
    assert f"  {'r' * 19}…  " in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["0", "-1", "x", "9" * 30])
def test_a_limit_is_a_number_of_rows(path, limit, capsys):
    """Any other is refused before the outbox is opened."""
    with pytest.raises(SystemExit):
        run("ls", path, f"--limit={limit}")
    assert f"argument --limit: must be a number from 1 to 1,000,000, not '{limit}'" in capsys.readouterr().err


def test_an_unknown_option_shows_the_usage_of_its_command(path, capsys):
    """And not that of `warrener`."""
    with pytest.raises(SystemExit):
        run("retry", path, "--every")
    err = capsys.readouterr().err
    assert err.startswith("usage: warrener outbox retry ")
    assert err.endswith("warrener outbox retry: error: unrecognized arguments: --every\n")


def test_a_claimed_row_is_told_from_a_missing_one(path, capsys):
    """It is there, and stays."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO warrener_outbox_claim (token, positions) VALUES ('another', '[3]')")
    assert run("drop", path, 3) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (
        "0 rows deleted\n", "3: not deleted, because a relay has claimed it; end the relay, then repeat this command\n",
    )  # fmt: skip


def test_stats_counts(path, capsys):
    """In JSON with the names of `OutboxStatus`."""
    assert run("stats", path, "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["waiting"], counts["leased"], counts["set_aside"]) == (2, 0, 1)


def test_stats_in_words(path, capsys):
    """An age has a unit."""
    assert run("stats", path) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[:3] == [["waiting", "2"], ["leased", "0"], ["set", "aside", "1"]]
    assert shown[-1][-1] == "s"
    assert len(shown[-1][-2].rpartition(".")[2]) == 1


def test_a_value_that_is_not_there_is_a_dash(path, tmp_path, capsys):
    """In words; in JSON it is null."""
    assert run("show", path, 3) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown if line.startswith(("key", "reason", "set aside"))] == [
        ["key", "-"], ["reason", "-"], ["set", "aside", "at", "-"],
    ]  # fmt: skip
    run("init", tmp_path / "empty.db")
    capsys.readouterr()
    assert run("stats", tmp_path / "empty.db") == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["oldest", "age", "-"]


def test_an_outbox_that_cannot_be_used_is_one_line(tmp_path, capsys):
    """With status 2; looking at a file that is not there does not make it."""
    missing = tmp_path / "missing.db"
    assert run("ls", missing) == 2
    assert not missing.exists()
    assert capsys.readouterr().err == (
        f"warrener outbox: there is no file {missing}; this makes it: warrener outbox init {missing}\n"
    )


def test_init_makes_the_tables_or_prints_how(tmp_path, capsys):
    """The printed statements make the same tables."""
    assert run("init", tmp_path / "one.db") == run("init", tmp_path / "one.db") == 0
    assert capsys.readouterr().out == (
        "the outbox tables were made\nthe outbox tables were there already; nothing was changed\n"
    )
    assert run("stats", tmp_path / "one.db") == 0
    capsys.readouterr()
    assert run("init", tmp_path / "two.db", "--sql") == 0
    db = sqlite3.connect(tmp_path / "two.db")
    db.executescript(capsys.readouterr().out)
    db.close()
    assert run("stats", tmp_path / "two.db") == 0
    assert "PARTITION BY LIST" in ddl("postgresql")


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("postgresql://host/db", "PostgresOutbox"),
        ("postgres://host", "PostgresOutbox"),
        ("host=db dbname=shop", "PostgresOutbox"),
        ("service=shop", "PostgresOutbox"),
        ("tasks.db", "SQLiteOutbox"),
        ("/var/lib/a=b.db", "SQLiteOutbox"),
    ],
)
def test_a_place_names_a_file_or_a_database(place, kind):
    """By its very text."""
    assert type(outbox_at(place)).__name__ == kind


@pytest.mark.slow
def test_a_process_that_only_relays(path):
    """Another program inserts; SIGINT ends the relay with status 0, and further signals change nothing.

    A row that is set aside is said at once, with the command that publishes it again, and a state of the connection as
    `warrener check --watch` says it.
    """
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO warrener_outbox (routing_key, body) VALUES ('nowhere', 'x')")
    with EmbeddedBroker.in_thread() as broker:
        broker.declare_queue("q")
        command = [sys.executable, "-m", "warrener", "outbox", "relay", str(path), "--to", broker.url]
        relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = []
        for line in relay.stdout:
            lines.append(line.rstrip("\n").partition(" ")[2])
            if "1 confirmed, 1 waiting, 2 set aside; `warrener outbox ls` names the reasons" in line:
                break
        # An impatient user: the second one comes while the first one is obeyed.
        relay.send_signal(signal.SIGINT)
        relay.send_signal(signal.SIGINT)
        relay.send_signal(signal.SIGTERM)
        rest, _ = relay.communicate(timeout=30)

        assert relay.returncode == 0
        assert rest.splitlines()[-1].partition(" ")[2] == (
            "ended; 1 confirmed, 1 still waiting, 2 set aside; row 1 is set aside and holds up its key: retry that row, or drop it"
        )
        assert len(broker.messages("q")) == 1
        assert len(lines) == len(set(lines)), "a line was printed twice"
        assert lines[0] == f"to amqp://{urlsplit(broker.url).netloc.rpartition('@')[2]}/; Ctrl-C ends it"
        (aside,) = [line for line in lines if line.startswith("row ")]
        assert aside.startswith("row 4 (exchange '', routing key 'nowhere') was set aside (Unroutable): ")
        assert aside.endswith(
            f"then publish it again: warrener outbox retry {path} 4; this deletes it: warrener outbox drop {path} 4"
        )
        (up,) = [line for line in lines if line.startswith("CONNECTED")]
        assert "; link 1; heartbeat " in up


def test_a_wait_for_the_broker_says_how_long(path):
    """A wrong port, a wrong password: the line has the fault and the seconds until the next attempt."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "warrener", "outbox", "relay", str(path), "--to", f"amqp://127.0.0.1:{port}/"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        line = next(line for line in relay.stdout if "DISCONNECTED" in line)
        counted = next(line for line in relay.stdout if "confirmed" in line)
        relay.send_signal(signal.SIGINT)
        relay.communicate(timeout=30)

    assert "no connection; 0 confirmed, 2 waiting, 1 set aside; " in counted
    assert re.search(r"next attempt in \d+ s; the connection was refused", line)
    assert relay.returncode == 0


def test_the_last_line_of_a_relay_says_what_waits_and_for_what(path):
    """Rows that a queue may hold already, and several keys that are held up."""
    args = argparse.Namespace(place=str(path))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE warrener_outbox SET possible_duplicate = 1 WHERE position = 3")
    assert _what_is_left(args) == (
        "2 still waiting (1 of them may be in a queue already), 1 set aside; start the relay again to publish the waiting rows"
    )
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE warrener_outbox SET key = 'b', possible_duplicate = 0 WHERE position = 3")
        db.execute(
            "INSERT INTO warrener_outbox_set_aside (position, message_id, key, exchange, routing_key, properties, stored_at, attempts,"
            " possible_duplicate, set_aside_at, reason, last_error, holds, body)"
            " SELECT 9, message_id, 'b', exchange, routing_key, properties, stored_at, attempts, possible_duplicate,"
            " set_aside_at, reason, last_error, holds, body FROM warrener_outbox_set_aside"
        )
    assert _what_is_left(args) == (
        "2 still waiting, 2 set aside; 2 rows that are set aside hold up their keys: retry those rows, or drop them"
    )
    SQLiteOutbox(path).drop([1, 2, 3, 9])
    assert _what_is_left(args) == "none waiting, 0 set aside"
