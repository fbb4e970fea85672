"""The private broker does what tests of faults rely on, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from warrener.testing import rabbitmq
from warrener.testing.rabbitmq import BrokerTLS, PrivateRabbitMQ, RabbitMQFailed, RabbitMQMissing

pytestmark = pytest.mark.broker


def _greeting(port: int) -> bytes:
    """The first byte that answers the protocol header: 1 is a method frame."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        peer.sendall(b"AMQP\x00\x00\x09\x01")
        return peer.recv(1)


def _gone(pid: int) -> bool:
    """Whether the process has ended (a zombie, whose parent is slow to look, has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def _group_members(group: int) -> set[int]:
    members = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group and not _gone(int(entry.name)):
                    members.add(int(entry.name))
            except ProcessLookupError:
                pass
    return members


def _listening_addresses(group: int) -> set[tuple[int, str]]:
    """The ports and local addresses, the latter as /proc/net writes them, on which the processes of the group listen."""
    sockets = {
        entry.readlink().name
        for member in _group_members(group)
        for entry in Path(f"/proc/{member}/fd").iterdir()
        if entry.is_symlink()
    }
    rows = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    local = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    return {(int(port, 16), address) for address, port in local}


@pytest.mark.full
@pytest.mark.parametrize("taken", [0, 2], ids=["amqp", "distribution"])
def test_a_port_that_was_taken_in_the_meantime_is_replaced(monkeypatch, taken):
    """Between the choice of a port and the broker's use of it lie seconds, and other programs take ports as well."""
    chosen = rabbitmq.free_ports
    with socket.create_server(("127.0.0.1", 0)) as other:
        choices = []

        def choose(count):
            choices.append(chosen(count))
            if len(choices) == 1:
                choices[0][taken] = other.getsockname()[1]
            return choices[-1]

        monkeypatch.setattr(rabbitmq, "free_ports", choose)
        with PrivateRabbitMQ() as broker:
            assert _greeting(broker.port) == b"\x01"
            assert broker.port == choices[1][0]


def test_listens_on_loopback_only(rabbitmq):
    """AMQP, distribution and epmd: no listener can be reached from another machine."""
    listening = _listening_addresses(rabbitmq._group)

    assert {address for _, address in listening} <= {"0100007F", "00000000000000000000000001000000"}
    assert {port for port, _ in listening} == {rabbitmq.port, rabbitmq._distribution_port, rabbitmq._epmd_port}


def test_the_same_ports_and_data_after_sigkill(rabbitmq):
    """A killed broker refuses connections; started again it is the same broker on the same port."""
    rabbitmq.add_vhost("kept")
    rabbitmq.sync()
    pid, url = rabbitmq.pid, rabbitmq.url

    rabbitmq.kill()

    assert _gone(pid)
    assert not rabbitmq.running
    with pytest.raises(ConnectionRefusedError):
        _greeting(rabbitmq.port)

    rabbitmq.start()

    assert rabbitmq.url == url
    assert rabbitmq.eval('rabbit_vhost:exists(<<"kept">>)') == "true"
    rabbitmq.delete_vhost("kept")


def test_the_console_is_only_appended_to(rabbitmq):
    """The last word of a killed broker's helper lands at the end of its successor's console, and hides no answer there."""
    flags = Path(f"/proc/{rabbitmq.pid}/fdinfo/1").read_text().split("flags:")[1].split()[0]

    assert int(flags, 8) & os.O_APPEND


def test_frozen_keeps_its_connections_and_says_nothing(rabbitmq):
    """A frozen broker accepts (the kernel does) but does not answer; thawed it does."""
    with socket.create_connection(("127.0.0.1", rabbitmq.port), timeout=60) as peer:
        rabbitmq.freeze()
        peer.sendall(b"AMQP\x00\x00\x09\x01")
        peer.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.recv(1)

        rabbitmq.thaw()

        peer.settimeout(30)
        assert peer.recv(1) == b"\x01"


def test_a_frozen_broker_can_be_killed(rabbitmq):
    """SIGKILL needs no cooperation."""
    rabbitmq.freeze()
    pid = rabbitmq.pid

    rabbitmq.kill()

    assert _gone(pid)


def test_restart_is_orderly(rabbitmq):
    """A stopped broker ends by itself; a restarted one is another process that answers."""
    before = rabbitmq.pid

    rabbitmq.restart()

    assert rabbitmq.pid != before
    assert _greeting(rabbitmq.port) == b"\x01"


def test_memory_alarm_is_in_force_when_the_call_returns(rabbitmq):
    """No publisher can slip between the call and the alarm."""
    rabbitmq.memory_alarm(True)
    assert "memory" in rabbitmq.eval("rabbit_alarm:get_alarms()")

    rabbitmq.memory_alarm(False)
    assert rabbitmq.eval("rabbit_alarm:get_alarms()") == "[]"


def test_users_permissions_and_vhosts(rabbitmq):
    """What the calls change is what rabbitmqctl sees; names with any characters are data."""
    user, vhost = 'o"dd>>user', "a/b ü"
    count = "[length(rabbit_auth_backend_internal:list_users()), length(rabbit_vhost:list_names())]"
    before = rabbitmq.eval(count)
    rabbitmq.add_vhost(vhost)
    rabbitmq.add_user(user, "first", vhost=None)
    rabbitmq.set_permissions(user, vhost=vhost, write="^only$")

    assert "^only$" in rabbitmq.ctl("list_permissions", "-p", vhost)
    assert rabbitmq.url_for(user, "first", vhost).endswith("/a%2Fb%20%C3%BC")

    rabbitmq.change_password(user, "second")
    assert "Success" in rabbitmq.ctl("authenticate_user", user, "second")
    rabbitmq.clear_permissions(user, vhost=vhost)
    assert "^only$" not in rabbitmq.ctl("list_permissions", "-p", vhost)
    rabbitmq.delete_user(user)
    rabbitmq.delete_vhost(vhost)
    assert rabbitmq.eval(count) == before


def test_what_the_broker_refuses_is_an_error(rabbitmq):
    """A command that did not do what it says raises."""
    with pytest.raises(RabbitMQFailed, match="user_already_exists"):
        rabbitmq.add_user("guest", "again")
    with pytest.raises(RabbitMQFailed, match="undef"):
        rabbitmq.eval("no_such:thing()")
    with pytest.raises(RabbitMQFailed, match="status"):
        rabbitmq.ctl("no_such_command")
    with pytest.raises(KeyError, match="no-such-queue"):
        rabbitmq.queue_depth("no-such-queue")


def test_queue_depths(rabbitmq, queue_name):
    """Depth counts what was published, by queue."""
    pika = pytest.importorskip("pika")
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq.url))
    try:
        channel = connection.channel()
        channel.queue_declare(queue_name)
        channel.confirm_delivery()
        for _ in range(3):
            channel.basic_publish("", queue_name, b"x")

        assert rabbitmq.queue_depth(queue_name) == 3
        assert rabbitmq.queues()[queue_name] == 3
        assert rabbitmq.connection_count() == 1

        assert rabbitmq.close_all_connections("shown to the client") == 1

        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="shown to the client"):
            connection.process_data_events(time_limit=30)
    finally:
        if connection.is_open:
            connection.close()
        rabbitmq.eval('[rabbit_amqqueue:delete(Q, false, false, <<"test">>) || Q <- rabbit_amqqueue:list(<<"/">>)], ok')


def test_tls_listener(tmp_path, private_rabbitmq):
    """With certificates given there is a second port that speaks TLS."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)

    with (
        PrivateRabbitMQ(
            tls=BrokerTLS(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"), root=private_rabbitmq._root
        ) as broker,
        socket.create_connection(("127.0.0.1", broker.tls_port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as peer,
    ):
        peer.sendall(b"AMQP\x00\x00\x09\x01")

        assert peer.recv(1) == b"\x01"
        assert broker.tls_url == f"amqps://guest:guest@127.0.0.1:{broker.tls_port}/"


def test_a_broker_that_cannot_start_says_why():
    """The error carries the end of the broker's own log, and nothing is left."""
    broker = PrivateRabbitMQ(extra_config="no_such_setting = 1")

    with pytest.raises(RabbitMQFailed, match="no_such_setting"), broker:
        pass

    assert not broker.running
    assert not broker._folder.exists()
    assert _group_members(broker._group) == set()


def test_a_missing_rabbitmq_says_how_to_get_it(monkeypatch, tmp_path):
    """One line: what is missing and the command that installs it."""
    monkeypatch.setattr("warrener.testing.rabbitmq._DEBIAN_BIN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(RabbitMQMissing, match="apt-get install rabbitmq-server"), PrivateRabbitMQ():
        pass


def test_a_root_without_rabbitmq_says_so(tmp_path, monkeypatch):
    """A folder is asked for its RabbitMQ, and the caller for root's rights, before anything is started."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(RabbitMQMissing, match="there is no RabbitMQ in"), PrivateRabbitMQ(root=tmp_path):
        pass
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(RabbitMQMissing, match="only root can enter"), PrivateRabbitMQ(root=tmp_path):
        pass


_OWNER = """
import pathlib, sys, time
from warrener.testing.rabbitmq import PrivateRabbitMQ
with PrivateRabbitMQ(root=pathlib.Path(sys.argv[2]) if sys.argv[2] else None) as broker:
    if "frozen" in sys.argv:
        broker.freeze()
    print(broker._group, broker._folder, flush=True)
    if "raise" in sys.argv:
        raise SystemExit(3)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("how", "end"),
    [
        ("running", signal.SIGKILL),
        pytest.param("frozen", signal.SIGKILL, marks=pytest.mark.full),
        pytest.param("running", signal.SIGTERM, marks=pytest.mark.full),
        ("raise", None),
    ],
    ids=["SIGKILL", "SIGKILL while the broker is frozen", "SIGTERM", "exception"],
)
def test_nothing_is_left_behind(private_rabbitmq, how, end):
    """Whatever way the owner ends, no process of the broker and no file of it survive for long."""
    root = str(private_rabbitmq._root or "")
    with subprocess.Popen([sys.executable, "-c", _OWNER, how, root], stdout=subprocess.PIPE, text=True) as owner:
        group, folder = owner.stdout.readline().split()
        if end is not None:
            assert len(_group_members(int(group))) >= 2  # epmd and the broker
            owner.send_signal(end)

    _wait_until(lambda: not _group_members(int(group)))
    _wait_until(lambda: not Path(folder).exists())
