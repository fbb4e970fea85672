"""``warrener publish`` as its users see it: input, queue, exit status, and the two files that it keeps."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import pytest

from warrener._cli import publish_files, publish_run, publish_view
from warrener._cli.main import main
from warrener.testing.broker import EmbeddedBroker

QUEUE = "tasks"
IMPATIENT = {"WARRENER_BACKOFF_INITIAL": "0.01", "WARRENER_BACKOFF_CAP": "0.01", "WARRENER_BACKOFF_MIN_GAP": "0.01"}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker.in_thread() as broker:
        broker.declare_queue(QUEUE)
        monkeypatch.setenv("RABBITMQ_URL", broker.url)
        yield broker


@pytest.fixture
def slow_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    """A broker whose disk is so slow that nothing is confirmed, except while `confirming`."""
    with EmbeddedBroker.in_thread(sync_interval=100_000.0) as broker:
        broker.declare_queue(QUEUE)
        monkeypatch.setenv("RABBITMQ_URL", broker.url)
        yield broker


@contextmanager
def confirming(broker: EmbeddedBroker) -> Iterator[None]:
    """Have it confirm what it holds, again and again."""
    done = threading.Event()

    def sync() -> None:
        while not done.wait(0.005):
            broker.sync()

    disk = threading.Thread(target=sync)
    disk.start()
    try:
        yield
    finally:
        done.set()
        disk.join()


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command; return its status and what it said."""

    def run(*arguments: str, key: str | None = QUEUE) -> tuple[int, str]:
        status = main(["publish", *(["-k", key] if key is not None else []), *arguments])
        out, err = capsys.readouterr()
        assert out == ""
        return status, err

    return run


def write(path: str, *lines: str) -> str:
    Path(path).write_text("".join(f"{line}\n" for line in lines))
    return path


def kept() -> list[dict[str, Any]]:
    """What was not confirmed."""
    (file,) = Path().glob("warrener-unconfirmed-*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def taken(broker: EmbeddedBroker, queue: str = QUEUE) -> list[Any]:
    """Empty a queue with an independent client, for what the broker does not show."""
    with kombu.Connection(broker.url.replace("amqp://", "pyamqp://")) as connection, connection.channel() as channel:
        return list(iter(lambda: channel.basic_get(queue, no_ack=True), None))


def numbered(*numbers: int) -> list[bytes]:
    return [b"task %d" % number for number in numbers]


# --- formats ----------------------------------------------------------------------------------------------------------------


def test_each_line_is_a_message_in_the_order_of_the_file(broker, run) -> None:
    """Line ends are no part of a body, empty lines are skipped, the last line needs no end; confirmed, exit 0."""
    Path("in.txt").write_bytes("one\r\n\n  \nzwei grüße\nthree".encode())
    status, said = run("in.txt")
    assert (0, ["one", "zwei grüße", "three"]) == (status, [body.decode() for body in broker.messages(QUEUE)])
    assert said.startswith("3 confirmed in ")
    assert not list(Path().glob("warrener-*"))


def test_standard_input_is_read_where_no_file_is_named(broker) -> None:
    """As the end of a pipe."""
    command = [sys.executable, "-m", "warrener._cli.main", "publish", "-k", QUEUE, "--quiet"]
    done = subprocess.run(command, input=b"a\nb\n", check=True, capture_output=True)
    assert (b"", b"", [b"a", b"b"]) == (done.stdout, done.stderr, broker.messages(QUEUE))


def test_a_line_that_is_no_json_ends_the_run_by_name(broker, run) -> None:
    """What came before it is confirmed, it and the rest are not published; exit 2."""
    status, said = run("--format=jsonl", write("in.jsonl", '{"a": 1}', "[2]", "{", '"x"'))
    assert (2, [b'{"a": 1}', b"[2]"]) == (status, broker.messages(QUEUE))
    assert "stopped: in.jsonl:3: the line is not valid JSON\n" in said
    assert ["application/json"] * 2 == [message.content_type for message in taken(broker)]


def test_a_line_may_describe_a_whole_message(broker, run) -> None:
    """body or body_base64, and the fields of a message; what it does not say comes from the options."""
    broker.declare_queue("other")
    lines = [
        {"body": "x", "message_id": "id-1", "headers": {"a": [1, None]}, "priority": 3, "persistent": False},
        {"body_base64": "/wA=", "routing_key": "other"},
    ]
    status, _ = run("--format=messages", write("in.jsonl", *map(json.dumps, lines)))
    assert (0, [b"x"], [b"\xff\x00"]) == (status, broker.messages(QUEUE), broker.messages("other"))
    (message,) = taken(broker)
    properties = message.properties
    assert ("id-1", [1, None], 3, 1) == (
        properties["message_id"], message.headers["a"], properties["priority"], properties["delivery_mode"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "the line is not a JSON object"),
        ("{}", "the object must have either body or body_base64"),
        ('{"body": "x", "body_base64": ""}', "the object must have either body or body_base64"),
        ('{"body": {"a": 1}}', "body and body_base64 must be text"),
        ('{"body_base64": "%"}', "body_base64 is not base64"),
        ('{"body": "x", "routing-key": "a"}', "routing-key is no field of a message"),
        ('{"body": "x", "priority": 256}', "priority must be an integer from 0 to 255"),
        ('{"body": "x", "timestamp": 1}', "timestamp is no field of a message"),
        ('{"body": "\\ud800"}', "'utf-8' codec can't encode character"),
    ],
)
def test_a_description_that_is_wrong_is_named(broker, run, line, reason) -> None:
    """File, line and reason; exit 2, nothing published."""
    status, said = run("--format=messages", write("in.jsonl", line))
    assert (2, []) == (status, broker.messages(QUEUE))
    assert f"in.jsonl:1: {reason}" in said


def test_each_file_is_a_message_and_a_folder_is_its_files(broker, run) -> None:
    """Whatever is in them; in the order of the arguments, and of the names in a folder."""
    Path("sub/deep").mkdir(parents=True)
    for name, body in [("sub/b", b"\x00\n\xff"), ("sub/deep/a", b"deep"), ("first", b"1\n2\n")]:
        Path(name).write_bytes(body)
    status, _ = run("--format=files", "first", "sub")
    assert (0, [b"1\n2\n", b"\x00\n\xff", b"deep"]) == (status, broker.messages(QUEUE))


# --- what is not confirmed ---------------------------------------------------------------------------------------------------


def test_what_was_not_confirmed_is_kept_and_can_be_published_again(broker, run) -> None:
    """Exit 1; the file says why and whether a queue may hold it, is private, and is input, under the same ids."""
    status, said = run(write("in.txt", "private"), key="later")
    (file,) = Path().glob("warrener-unconfirmed-*.jsonl")
    (line,) = kept()
    assert (1, "private", False, "in.txt:1") == (
        status, line["body"], line["may_have_been_delivered"], line["from"],
    )  # fmt: skip
    assert "1 not confirmed (Unroutable 1): 1 in no queue, 0 may be in one" in said
    assert f"warrener publish --format messages {file}" in said
    assert 0o600 == file.stat().st_mode & 0o777
    broker.declare_queue("later")
    assert 0 == run("--format=messages", str(file), key=None)[0]
    (message,) = taken(broker, "later")
    assert (b"private", line["message_id"]) == (message.body, message.properties["message_id"])


def test_too_many_failures_end_the_run(broker, run) -> None:
    """A wrong routing key does not cost a file as long as the input: --max-unconfirmed."""
    status, said = run("--max-unconfirmed=2", "--window=5", write("in.txt", *"abcdefghijklmnop"), key="nobody")
    assert 1 == status
    assert "stopped: more than 2 messages were not confirmed (--max-unconfirmed)" in said
    assert 3 <= len(kept()) <= 3 + 5


@pytest.mark.parametrize(("code", "exchange"), [(404, "missing"), (403, "forbidden")])
def test_a_refused_exchange_is_named_and_certain(broker, run, code, exchange) -> None:
    """Each message is in no queue, and the broker's reason is there, once, whatever the number of messages."""
    broker.declare_exchange("forbidden")
    broker.set_permissions("guest", write="^(?!forbidden$)")
    status, said = run("--exchange", exchange, write("in.txt", *"abcdefghijklmnopqrst"))
    assert 1 == status
    assert "20 not confirmed (PublishRefused 20): 20 in no queue, 0 may be in one" in said
    (reason,) = [line for line in said.splitlines() if "the first PublishRefused:" in line]
    assert f"'{exchange}'" in reason
    assert f"[{code}]" in reason


def test_a_refused_login_ends_the_run_at_once(broker, run, monkeypatch) -> None:
    """No attempts for what time does not mend; one line, exit 1, nothing of the password."""
    monkeypatch.setenv("RABBITMQ_URL", broker.url_for("guest", "wr0ng-pass"))
    status, said = run(write("in.txt", "x"))
    assert (1, []) == (status, broker.messages(QUEUE))
    assert "refused the login" in said
    assert "wr0ng-pass" not in said


def test_a_broker_that_never_comes_ends_the_run_when_the_attempts_are_used_up(run, monkeypatch) -> None:
    """Nothing was read, so nothing is kept; exit 1."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RABBITMQ_URL", f"amqp://a:b@127.0.0.1:{holder.getsockname()[1]}/")
        for name, value in {**IMPATIENT, "WARRENER_BACKOFF_ATTEMPTS": "2"}.items():
            monkeypatch.setenv(name, value)
        status, said = run(write("in.txt", "x"))
    assert 1 == status
    assert "0 confirmed" in said
    assert "the reconnect attempts are used up" in said
    assert not list(Path().glob("warrener-*"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["absent.txt"], "absent.txt is not there"),
        (["."], ". is a folder; folders are for --format files"),
        (["--unconfirmed=in.txt", "in.txt"], "in.txt exists"),
        (["--unconfirmed=no/where", "in.txt"], "cannot be written to"),
        (["--resume=in.txt", "in.txt"], "in.txt was not written by --resume"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_published(broker, run, arguments, reason) -> None:
    """One line, exit 2."""
    write("in.txt", "x")
    status, said = run(*arguments)
    assert (2, [], 1) == (status, broker.messages(QUEUE), said.count("\n"))
    assert reason in said


def test_a_routing_key_is_needed(run, capsys) -> None:
    """A message without one would go to the queue called ''."""
    with pytest.raises(SystemExit) as caught:
        run(key=None)
    assert 2 == caught.value.code
    assert "--routing-key is needed" in capsys.readouterr().err


# --- resuming ---------------------------------------------------------------------------------------------------------------


def test_the_same_command_goes_on_where_the_last_one_ended(broker, run) -> None:
    """Neither twice nor never: also when lines were added, and when there is nothing left to do."""
    write("in.jsonl", "1", "2", "oops")
    arguments = ("--format=jsonl", "--resume=place", "in.jsonl")
    assert 2 == run(*arguments)[0]
    write("in.jsonl", "1", "2", "3")
    assert 0 == run(*arguments)[0]
    write("in.jsonl", "1", "2", "3", "4")
    assert 0 == run(*arguments)[0]
    assert 0 == run(*arguments)[0]
    assert [b"1", b"2", b"3", b"4"] == broker.messages(QUEUE)
    assert 0o600 == Path("place").stat().st_mode & 0o777


def test_another_input_is_not_taken_for_the_rest(broker, run) -> None:
    """A changed or shorter file, another target: refused, and nothing is published."""
    broker.declare_queue("other")
    assert 0 == run("--resume=place", write("in.txt", "1", "2", "3"))[0]
    changed = run("--resume=place", write("in.txt", "1", "X", "3", "4"))
    shorter = run("--resume=place", write("in.txt", "1", "2"))
    elsewhere = run("--resume=place", "in.txt", key="other")
    assert (2, 2, 2) == (changed[0], shorter[0], elsewhere[0])
    assert "the input up to here differs from that of the earlier run" in changed[1]
    assert "the input has only 2 messages, but an earlier run published 3" in shorter[1]
    assert "belongs to another run: routing_key differ" in elsewhere[1]
    assert ([b"1", b"2", b"3"], []) == (broker.messages(QUEUE), broker.messages("other"))


def test_a_resumed_run_adds_to_what_was_not_confirmed(broker, run) -> None:
    """One file for all parts of a run, each message in it once; earlier failures are mentioned and do not fail this part."""
    arguments = ("--format=messages", "--resume=place", "in.jsonl")
    lost, good = '{"body": "lost", "routing_key": "nobody"}', '{"body": "good"}'
    write("in.jsonl", lost, good, "oops")
    assert 2 == run(*arguments)[0]
    write("in.jsonl", lost, good, lost)
    assert 1 == run(*arguments)[0]
    write("in.jsonl", lost, good, lost, good)
    status, said = run(*arguments)
    assert (0, ["lost", "lost"]) == (status, [line["body"] for line in kept()])
    assert "2 were not confirmed in earlier runs" in said
    assert 2 == len({line["message_id"] for line in kept()})


def test_what_could_not_be_written_down_is_not_passed_over(broker, run, monkeypatch) -> None:
    """A full disk: the message is named, the run stops, and the next one takes the message up again."""
    save, saved = publish_files.PlaceFile.save, []

    def full(file: publish_files.PlaceFile, place: publish_files.Place) -> None:
        saved.append(place)
        if len(saved) > 1:  # there is place at the start
            raise OSError(errno.ENOSPC, "")
        save(file, place)

    lines = [
        json.dumps({"body": body, "routing_key": key}) for body, key in (("a", QUEUE), ("b", "later"), ("c", QUEUE))
    ]
    arguments = ("--format=messages", "--resume=place", write("in.jsonl", *lines))
    with monkeypatch.context() as patch:
        patch.setattr(publish_files.PlaceFile, "save", full)
        status, said = run(*arguments)
    assert 1 == status
    assert "not confirmed, and could not be saved: " in said
    assert "No space left on device" in said
    broker.declare_queue("later")
    assert 0 == run(*arguments)[0]
    assert [b"b"] == broker.messages("later")
    assert {b"a", b"c"} == set(broker.messages(QUEUE))


def test_a_file_of_failures_that_was_taken_away_begins_anew(broker, run) -> None:
    """Whoever has published its messages again deletes it; the run goes on without holes in a new one."""
    lost = '{"body": "lost", "routing_key": "nobody"}'
    arguments = ("--format=messages", "--resume=place", "in.jsonl")
    write("in.jsonl", lost)
    assert 1 == run(*arguments)[0]
    next(Path().glob("warrener-unconfirmed-*")).unlink()
    write("in.jsonl", lost, lost)
    assert 1 == run(*arguments)[0]
    assert ["in.jsonl:2"] == [line["from"] for line in kept()]


def test_the_names_of_the_files_are_on_the_disk_too(broker, run, monkeypatch) -> None:
    """A power cut takes away no file that a promise rests on: its folder is synchronised after each new or replaced name."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    assert 1 == run("--format=messages", "--resume=place", write("in.jsonl", LOST % 1))[0]
    place = ["file", "replace", "folder"]
    assert [*place, *place, "folder", "file", *place] == done, "the place, the place with the line, the line, the place"


LOST = '{"body": "%d", "routing_key": "nobody"}'


@pytest.mark.parametrize("there", [0, 1, 100, None])
def test_lines_that_a_crash_left_out_are_appended_once(broker, run, there) -> None:
    """The place holds them until they are in their file: none, a part or all of them were, when the run was killed."""
    arguments = ("--format=messages", "--resume=place", "in.jsonl")
    write("in.jsonl", LOST % 1, LOST % 2)
    assert 1 == run(*arguments)[0]
    (file,) = Path().glob("warrener-unconfirmed-*")
    text = file.read_text()
    place = json.loads(Path("place").read_text())
    place["place"] |= {"lines": text, "file_size": 0}
    Path("place").write_text(json.dumps(place))
    file.write_text(text[:there])
    write("in.jsonl", LOST % 1, LOST % 2, LOST % 3)
    assert 1 == run(*arguments)[0]
    assert ["1", "2", "3"] == [line["body"] for line in kept()]


def test_a_file_of_failures_that_was_edited_is_not_cut(broker, run) -> None:
    """Lines that somebody has added stay, and those that he has left are there once."""
    arguments = ("--format=messages", "--resume=place", "in.jsonl")
    write("in.jsonl", LOST % 1, LOST % 2)
    assert 1 == run(*arguments)[0]
    (file,) = Path().glob("warrener-unconfirmed-*")
    text = file.read_text()
    place = json.loads(Path("place").read_text())
    place["place"] |= {"lines": text, "file_size": 0}
    Path("place").write_text(json.dumps(place))
    file.write_text('{"body": "mine"}\n' + text.splitlines()[1])
    write("in.jsonl", LOST % 1, LOST % 2, LOST % 3)
    assert 1 == run(*arguments)[0]
    assert ["mine", "2", "1", "3"] == [line["body"] for line in kept()]


@pytest.mark.parametrize("option", ["--resume=link", "--unconfirmed=link"])
def test_no_link_is_followed(broker, run, option) -> None:
    """The file behind it keeps its content; exit 2."""
    Path("precious").write_text("data")
    Path("link").symlink_to("precious")
    status, said = run(option, write("in.txt", "x"))
    assert (2, "data", []) == (status, Path("precious").read_text(), broker.messages(QUEUE))
    assert "link" in said
    assert 1 == said.count("\n")


@pytest.mark.parametrize("name", ["place.new", "place.lock"])
def test_no_link_at_a_name_of_the_run_s_own_is_followed(broker, run, name) -> None:
    """Whoever can write into the folder cannot have the run overwrite a file elsewhere."""
    Path("precious").write_text("data")
    Path(name).symlink_to("precious")
    run("--resume=place", write("in.txt", "x"))
    assert "data" == Path("precious").read_text()


def test_a_second_run_of_one_place_is_refused_and_told_who_holds_it(slow_broker, run) -> None:
    """Neither publishes twice nor writes into the other's files; when the first has ended, the next goes on."""
    command = [
        sys.executable,
        "-m",
        "warrener._cli.main",
        "publish",
        "-k",
        QUEUE,
        "--resume=place",
        write("in.txt", "x"),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        wait_until(lambda: len(slow_broker.log) == 1)
        status, said = run("--resume=place", "in.txt")
        assert (2, f"place is in use by the run of process {first.pid}" in said) == (status, True), said
        with confirming(slow_broker):
            assert 0 == first.wait(30)
    assert 0 == run("--resume=place", "in.txt")[0]
    assert [b"x"] == slow_broker.messages(QUEUE)
    assert not Path("place.lock").exists()


def test_a_lock_that_a_killed_run_left_behind_holds_nobody_up(broker, run) -> None:
    """The kernel has let go of it."""
    Path("place.lock").write_text("1")
    assert 0 == run("--resume=place", write("in.txt", "x"))[0]


def test_two_runs_do_not_share_a_file_of_failures(slow_broker, run) -> None:
    """The second is refused before it publishes anything; an empty file is not left behind."""
    command = [
        sys.executable,
        "-m",
        "warrener._cli.main",
        "publish",
        "-k",
        QUEUE,
        "--unconfirmed=u",
        write("in.txt", "x"),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        wait_until(lambda: len(slow_broker.log) == 1)
        status, said = run("--unconfirmed=u", "in.txt")
        assert (2, "u exists; remove it" in said) == (status, True), said
        with confirming(slow_broker):
            assert 0 == first.wait(30)
    assert (1, False) == (len(slow_broker.messages(QUEUE)), Path("u").exists())


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '"x"', "null", "[" * 100_000, '{"place": {"messages": "abc"}, "of": {}}', '{"place": [], "of": {}}',
        '{"place": {"messages": -1}, "of": {}}', '{"place": {"run": 7}, "of": {}}', '{"place": {"run": "x"}, "of": {}}',
        '{"place": {"messages": true}, "of": {}}', '{"place": {"nothing": 1}, "of": {}}', "\udcff",
    ],
)  # fmt: skip
def test_a_place_that_is_no_place_is_one_line(broker, run, text) -> None:
    """Whatever is in the file; it is left as it is."""
    Path("place").write_bytes(text.encode(errors="surrogateescape"))
    before = Path("place").read_bytes()
    status, said = run("--resume=place", write("in.txt", "x"))
    assert (2, "warrener publish: ", 1, before) == (status, said[:18], said.count("\n"), Path("place").read_bytes())
    assert "place was not written by --resume" in said


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"body": "x", "headers": ' + '{"a": ' * 900 + "1" + "}" * 901, '{"headers": ' + "[" * 100_000],
)
def test_input_that_is_nested_without_end_is_one_line_with_its_place(broker, run, line) -> None:
    """No traceback; exit 2."""
    status, said = run("--format=messages", write("in.jsonl", '{"body": "good"}', line))
    assert (2, [b"good"]) == (status, broker.messages(QUEUE))
    assert "stopped: in.jsonl:2: " in said
    assert "Traceback" not in said


def test_a_resumed_run_says_where_it_goes_on(broker, run) -> None:
    """The number of the line, and the bytes before it."""
    text = "one\r\n\nzwei gr\u00fc\u00dfe\n"
    Path("in.txt").write_bytes(text.encode())
    assert 0 == run("--resume=place", "in.txt")[0]
    Path("in.txt").write_bytes(f"{text}three\n".encode())
    status, said = run("--resume=place", "in.txt")
    assert 0 == status
    assert f"continues after message 2, at in.txt line 4, byte {len(text.encode())}\n" in said


@pytest.mark.slow
def test_kill_9_at_any_point_loses_nothing_and_repeats_little(broker, run) -> None:
    """Killed a dozen times: every line is in the queue, and each time no more than 200 lines were published again."""
    write("in.txt", *(f"task {number}" for number in range(3000)))
    command = [sys.executable, "-m", "warrener._cli.main", "publish", "-k", QUEUE, "--resume=place", "in.txt"]
    kills = 0
    for number in range(12):
        before = len(broker.log)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as program:
            wait_until(lambda: len(broker.log) >= before + 37 * number or program.poll() is not None)  # noqa: B023
            kills += program.poll() is None
            program.kill()
    assert 0 == run("--resume=place", "in.txt")[0]
    assert kills
    assert set(numbered(*range(3000))) == set(broker.messages(QUEUE))
    assert len(broker.log) - 3000 <= 200 * kills
    assert 3000 == len({entry.message_id for entry in broker.log}), "a line that was published again has the same id"


@pytest.mark.full
def test_kill_9_before_and_within_each_change_of_a_file_loses_nothing(broker) -> None:
    """At each point: every message is in the queue or in the file of failures, once there, and at most 200 are repeated."""
    size = 130
    command = [sys.executable, "-m", "tests.cli.crashes", str(size)]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, text=True)
    points = [json.loads(line) for line in told.stdout.splitlines()]
    published: dict[str, list[tuple[str, str]]] = {}
    for entry, body in zip(broker.log, broker.messages(QUEUE), strict=True):
        point, number = body.decode().split()
        published.setdefault(point, []).append((number, entry.message_id or ""))
    assert {"open", "write", "fsync", "replace", "unlink", "flock"} <= {point["change"] for point in points}
    for point in points:
        name = point["point"]
        numbers = {number for number, _ in published[name]}
        good = {str(number) for number in range(size) if number % 5 != 4}
        lost = [f"{name} {number}" for number in range(size) if number % 5 == 4]
        assert good == numbers, f"lost at {point}"
        assert lost == sorted(point["kept"], key=lambda body: int(body.split()[1])), f"failures at {point}"
        assert len(published[name]) - len(good) <= 200, point
        assert len(good) == len(set(published[name])), "a message that was repeated has the same id"
        assert ["in.jsonl", "place"] == [file for file in point["files"] if "unconfirmed" not in file], point


def test_a_crash_loses_nothing_and_what_it_doubles_has_one_id(slow_broker, run) -> None:
    """Killed with messages under way and resumed: every line is in the queue, and equal lines have equal ids."""
    broker = slow_broker
    write("in.txt", *(f"task {number}" for number in range(50)))
    command = [
        sys.executable,
        "-m",
        "warrener._cli.main",
        "publish",
        "-k",
        QUEUE,
        "--resume=place",
        "--window=10",
        "in.txt",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        wait_until(lambda: len(broker.log) >= 10)
        broker.sync()
        wait_until(lambda: len(broker.log) >= 20)
        program.kill()
    with confirming(broker):
        assert 0 == run("--resume=place", "in.txt")[0]
    ids: dict[bytes, set[str | None]] = {}
    for entry in broker.log:
        ids.setdefault(entry.body_hash, set()).add(entry.message_id)
    assert set(numbered(*range(50))) == set(broker.messages(QUEUE))
    assert 50 < len(broker.log) < 100, "it went on, and not from the start"
    assert {1} == {len(found) for found in ids.values()}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- outages and bounds -------------------------------------------------------------------------------------------------------


def test_an_outage_is_waited_for(slow_broker, monkeypatch) -> None:
    """Killed with unconfirmed messages and brought back: all are confirmed, what may be double is said, exit 0."""
    for name, value in IMPATIENT.items():
        monkeypatch.setenv(name, value)
    broker = slow_broker
    write("in.txt", *(f"task {number}" for number in range(30)))
    with subprocess.Popen(
        [sys.executable, "-m", "warrener._cli.main", "publish", "-k", QUEUE, "in.txt"],
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        wait_until(lambda: len(broker.log) >= 30)
        broker.crash()
        broker.restart()
        assert program.stderr is not None
        with confirming(broker):
            said = program.stderr.read()
    assert 0 == program.returncode, said
    assert set(numbered(*range(30))) == set(broker.messages(QUEUE))
    assert "30 confirmed" in said
    assert "30 of them may be twice in a queue" in said


def test_no_more_than_the_window_is_under_way(slow_broker) -> None:
    """Memory is bounded: while nothing is confirmed, no more is read than fits into the window."""
    broker = slow_broker
    write("in.txt", *(f"task {number}" for number in range(100)))
    with subprocess.Popen(
        [sys.executable, "-m", "warrener._cli.main", "publish", "-k", QUEUE, "--window=7", "in.txt"],
        stderr=subprocess.DEVNULL,
    ) as program:
        wait_until(lambda: len(broker.log) >= 7)
        time.sleep(0.2)  # another program: only time could show an eighth
        stalled = len(broker.log)
        with confirming(broker):
            program.wait(30)
    assert (7, 0, 100) == (stalled, program.returncode, len(broker.messages(QUEUE)))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_settles_what_is_under_way(broker, number) -> None:
    """Though standard input stays open; exit 128 + n, and the place says how far it came."""
    command = [sys.executable, "-m", "warrener._cli.main", "publish", "-k", QUEUE, "--resume=place"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stderr is not None
        program.stdin.write("a\nb\n")
        program.stdin.flush()
        wait_until(lambda: len(broker.messages(QUEUE)) == 2)
        program.send_signal(number)
        said = program.stderr.read()
        assert 128 + number == program.wait(30)
    assert "2 confirmed" in said
    assert 2 == json.loads(Path("place").read_text())["place"]["messages"]


def test_giving_up_leaves_the_rest_to_the_next_run(slow_broker, run, monkeypatch) -> None:
    """What was written is not confirmed and kept; what was never sent is neither lost nor kept twice: it is published later."""
    for name, value in {**IMPATIENT, "WARRENER_BACKOFF_ATTEMPTS": "1", "WARRENER_MAX_IN_FLIGHT": "3"}.items():
        monkeypatch.setenv(name, value)
    broker = slow_broker
    write("in.txt", *(f"task {number}" for number in range(10)))
    command = [sys.executable, "-m", "warrener._cli.main", "publish", "-k", QUEUE, "--resume=place", "in.txt"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        wait_until(lambda: len(broker.log) >= 3)
        broker.crash()
        assert program.stderr is not None
        said = program.stderr.read()
    assert 1 == program.returncode, said
    assert "7 read and not sent; the same command continues with them" in said
    assert ["task 0", "task 1", "task 2"] == [line["body"] for line in kept()]
    assert {True} == {line["may_have_been_delivered"] for line in kept()}
    broker.restart()
    with confirming(broker):
        assert 0 == run("--resume=place", "in.txt")[0]
    assert numbered(*range(3, 10)) == broker.messages(QUEUE)


# --- what is seen of it -------------------------------------------------------------------------------------------------------


def test_the_bar_shows_count_rate_and_latency(monkeypatch) -> None:
    """With rich: what is confirmed, how fast, and how long a confirm takes."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = publish_run.Progress(confirmed=1234, bytes_read=50, seconds=2.0)
    with publish_view._bar(100) as view:
        view.show("617/s, 1.6 ms to confirm", progress)
    shown = screen.getvalue()
    assert [part for part in ("1,234 confirmed", "617/s, 1.6 ms to confirm") if part not in shown] == []


def test_without_rich_there_are_plain_lines(monkeypatch, broker, run) -> None:
    """The base install is enough."""
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    status, said = run(write("in.txt", "x"))
    assert (0, "1 confirmed in ") == (status, said[:15])


def test_a_nack_is_no_confirm(slow_broker) -> None:
    """A message that is nacked is not confirmed, whatever else happened to it."""
    broker = slow_broker
    with subprocess.Popen(
        [sys.executable, "-m", "warrener._cli.main", "publish", "-k", QUEUE, write("in.txt", "x")],
        stderr=subprocess.PIPE,
    ) as program:
        wait_until(lambda: len(broker.log) == 1)
        broker.kill_queue(QUEUE)
        assert program.stderr is not None
        said = program.stderr.read()
    assert (1, True) == (program.returncode, kept()[0]["may_have_been_delivered"]), said
    assert b"1 not confirmed (Nacked 1): 0 in no queue, 1 may be in one" in said
