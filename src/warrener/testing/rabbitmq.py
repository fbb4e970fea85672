"""A private RabbitMQ for a test, a demo or a benchmark: no system service, and no root needed.

``with PrivateRabbitMQ() as broker:`` runs Debian's (or any) RabbitMQ from a temporary folder: its own node name, AMQP,
distribution and epmd ports, data, log, plugins file and Erlang cookie, all on 127.0.0.1. It is ready when it has answered
an AMQP handshake. Then the faults: `kill`, `freeze`, `stop`, `close_all_connections`, `memory_alarm`, users, permissions
and virtual hosts.

What must stay true:

- *Nothing is left behind, also when the owner is killed.* The broker and its epmd live in one process group. A watchdog
  (`_watchdog.py`) outside of the group reads a pipe that only the owner holds open. The pipe ends by `close`, by any
  exit of the owner or by SIGKILL; then the watchdog kills the group and removes the folder. There is no other clean-up
  path.
- *The ports stay free while the broker is down.* They are below the range of ports that the kernel gives to outgoing
  connections. A client that redials a dead port inside that range can get this port as its own source port; then it
  connects to itself, and the broker cannot come back.
- *Commands are cheap.* `rabbitmqctl` starts an Erlang machine, one to three seconds each. The broker is started with its
  Erlang shell on standard input instead (``RABBITMQ_ALLOW_INPUT``), and `eval` is one line there: about a
  millisecond. The functions called are those that rabbitmqctl itself calls. `ctl` is rabbitmqctl, for the rest.

**Another RabbitMQ than this machine's.** `root` is a folder that holds a whole system with a RabbitMQ in it (made by
debootstrap, unpacked from an image); the broker runs in a chroot there, in the same way and as tidily. Its folder then
lies in the root's ``/tmp``, and ``/proc`` is mounted for the broker alone, in a mount namespace that ends with it.

Everything blocks; an async program calls it as ``await anyio.to_thread.run_sync(broker.kill)``. One caller at a time.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

__all__ = ["BrokerTLS", "PrivateRabbitMQ", "RabbitMQFailed", "RabbitMQMissing", "rabbitmq_bin"]

#: Where Debian keeps the programs that its wrappers in /usr/sbin run as another user.
_DEBIAN_BIN = Path("/usr/lib/rabbitmq/bin")

#: How often the broker is started because a port was taken in the meantime, and how its log says that.
_PORT_TRIES = 3
_PORT_TAKEN = ("dist_port_already_used", "eaddrinuse")

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

#: Two schedulers that sleep when idle, few threads, and a small table of processes: made for a shared machine, quick to start.
_EMULATOR_FLAGS = (
    "+S 2:2 +A 4 +SDcpu 1:1 +SDio 2 +P 65536 +t 1048576 +sbwt none +sbwtdcpu none +sbwtdio none +stbt u "
    "-kernel inet_dist_use_interface {127,0,0,1}"
)


class RabbitMQMissing(RuntimeError):
    """There is no RabbitMQ on this machine; the text says how to get one."""


class RabbitMQFailed(RuntimeError):
    """The broker did not start, stop or obey in time; the text ends with its log."""


@frozen
class BrokerTLS:
    """What the TLS listener presents and demands; paths of PEM files."""

    certificate: Path
    private_key: Path
    authority: Path
    #: Whether clients must present a certificate that `authority` has signed.
    verify_clients: bool = False


def rabbitmq_bin() -> Path:
    """The folder of RabbitMQ's own programs, or `RabbitMQMissing`."""
    on_path = shutil.which("rabbitmq-server")
    candidates = [_DEBIAN_BIN, *([Path(on_path).resolve().parent] if on_path else [])]
    for folder in candidates:
        if (folder / "rabbitmq-server").exists() and (folder / "rabbitmq-env").exists():
            return folder
    raise RabbitMQMissing(
        "no rabbitmq-server on this machine; on Debian and Ubuntu: sudo apt-get install rabbitmq-server"
    )


class PrivateRabbitMQ:
    """One broker, its folder and its ports, from entering the block to leaving it.

    The end of the ``with`` body kills the broker and deletes its data. `stop` is there for tests of an orderly
    shutdown.
    """

    def __init__(
        self,
        *,
        plugins: Iterable[str] = (),
        tls: BrokerTLS | None = None,
        extra_config: str = "",
        start_timeout: float = 90.0,
        bin_folder: Path | None = None,
        root: Path | None = None,
        node: str = "warrener",
        beside: PrivateRabbitMQ | None = None,
        port: int | None = None,
    ) -> None:
        """Describe the broker; nothing is started yet.

        Args:
            plugins: names of plugins to enable, such as ``rabbitmq_management``.
            tls: adds a TLS listener on a port of its own; see `tls_url`.
            extra_config: lines added to ``rabbitmq.conf``.
            start_timeout: seconds from the start of the process to its answer to an AMQP handshake.
            bin_folder: where ``rabbitmq-server`` and ``rabbitmqctl`` are; default: `rabbitmq_bin`.
            root: a folder with a system of its own, from which the broker runs in a chroot; needs root. `bin_folder` is
                then a path inside of it.
            node: the name of its Erlang node, without the host.
            beside: another broker that runs: this one shares its Erlang cookie, epmd and watchdog, so that the two can be a
                cluster, and it ends with that one at the latest. See `warrener.testing.cluster`.
            port: the AMQP port on 127.0.0.1; default: a free one.
        """
        self._plugins = tuple(plugins)
        self._tls = tls
        self._extra_config = extra_config
        self._start_timeout = start_timeout
        self._bin = bin_folder
        self._root = root
        self._node = node
        self._beside = beside
        self._wanted_port = port
        self._resources = ExitStack()
        self._broker: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._evaluations = 0

    # --- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the broker; returns when it answers AMQP. Raises `RabbitMQMissing` or `RabbitMQFailed`.

        A port that another program took before the broker could is replaced by another one.
        """
        for _ in range(_PORT_TRIES - 1):
            try:
                return self._begin()
            except RabbitMQFailed as error:
                if not any(words in str(error) for words in _PORT_TAKEN):
                    raise
        return self._begin()

    def _begin(self) -> Self:
        if self._root is None:
            self._bin = self._bin or rabbitmq_bin()
        else:
            self._bin = self._bin or _DEBIAN_BIN
            _require_chroot(self._root, self._bin)
        if self._wanted_port is not None and not port_is_free(self._wanted_port):
            raise RabbitMQFailed(f"port {self._wanted_port} on 127.0.0.1 is used by another program, or not allowed")
        with ExitStack() as undo:
            beside = self._beside
            if beside is None:
                place = None if self._root is None else self._root / "tmp"
                self._folder = self._home = Path(tempfile.mkdtemp(prefix="warrener-rabbitmq-", dir=place))
            else:
                self._home = beside._home  # noqa: SLF001 - the same class
                self._folder = self._home / self._node
                self._folder.mkdir()
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self.port, self.tls_port, self._distribution_port, self._epmd_port = free_ports(4)
            if self._wanted_port is not None:
                self.port = self._wanted_port
            if beside is not None:
                self._epmd_port = beside._epmd_port  # noqa: SLF001 - the same class
            self._environment = self._describe()
            self._group: int = self._start_watchdog(undo) if beside is None else beside._group  # noqa: SLF001 - the same class
            undo.callback(self._reap)
            self._resources = undo.pop_all()
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()

    def close(self) -> None:
        """Kill the broker and its epmd, and remove its folder. Idempotent."""
        self._resources.close()

    def start(self) -> None:
        """Start again after `kill` or `stop`, on the same ports and data; does nothing while running."""
        if self.running:
            return
        assert self._bin is not None
        self._console.write_bytes(b"")
        # Appending: a helper of the killed broker may still write a line; it goes to the end and overwrites nothing.
        with self._console.open("ab") as console:
            broker = subprocess.Popen(
                self._command(self._bin / "rabbitmq-server"),
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._folder,
                process_group=self._group,
            )
        self._broker = broker
        self._frozen = False
        deadline = time.monotonic() + self._start_timeout
        # RabbitMQ 4 opens its listeners one after the other.
        while not (_answers_amqp(self.port) and (self._tls is None or _listens(self.tls_port))):
            if broker.poll() is not None:
                raise RabbitMQFailed(
                    f"the broker ended with status {broker.returncode} while starting{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise RabbitMQFailed(f"the broker did not answer within {self._start_timeout:g} s{self._log_tail()}")
            time.sleep(0.05)

    def sync(self) -> None:
        """Have the declarations so far written to disk.

        The broker does this by itself only after some seconds. A `kill` before that may undo the declaration of a
        durable queue, and then all messages of the queue are lost, confirmed ones too.
        """
        self._order("mnesia:sync_log()")

    def kill(self) -> None:
        """SIGKILL, frozen or not: clients get no close, and messages that were not written to disk may be lost (see `sync`)."""
        if self._broker is not None:
            self._reap()

    def stop(self, timeout: float = 60.0) -> None:
        """Shut down in order, as an operator would: clients are told (320, CONNECTION_FORCED). Raises `RabbitMQFailed`."""
        broker = self._broker
        if broker is None or broker.poll() is not None:
            return
        self.thaw()
        broker.terminate()
        try:
            broker.wait(timeout)
        except subprocess.TimeoutExpired:
            self._reap()
            raise RabbitMQFailed(f"the broker did not stop within {timeout:g} s{self._log_tail()}") from None
        self._reap()

    def restart(self) -> None:
        """`stop`, then `start`."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, as with a machine that hangs; in force when this returns."""
        broker = self._running()
        broker.send_signal(signal.SIGSTOP)
        self._frozen = True
        # The signal is only on its way: on a busy machine the broker goes on for a while, and confirms publishes.
        tasks = Path(f"/proc/{broker.pid}/task")
        while broker.poll() is None and any(_state(task) not in "TtZX" for task in tasks.iterdir()):
            time.sleep(0.001)

    def thaw(self) -> None:
        """SIGCONT; does nothing to a broker that is not frozen."""
        if self._frozen:
            self._running().send_signal(signal.SIGCONT)
            self._frozen = False

    @property
    def running(self) -> bool:
        """Whether the process lives; a frozen one does."""
        return self._broker is not None and self._broker.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the Erlang machine. Raises `RabbitMQFailed` when it does not run."""
        return self._running().pid

    @property
    def node(self) -> str:
        """The full name of its Erlang node."""
        return f"{self._node}@localhost"

    @property
    def version(self) -> tuple[int, ...]:
        """RabbitMQ's version, e.g. ``(3, 10, 8)``."""
        return tuple(map(int, re.findall(r"\d+", self.eval("rabbit_misc:version()"))[:3]))

    # --- addresses ------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """``amqp://guest:guest@127.0.0.1:<port>/``."""
        return self.url_for()

    @property
    def tls_url(self) -> str:
        """The same over TLS; needs `tls`."""
        if self._tls is None:
            raise ValueError("this broker was made without tls=")
        return f"amqps://guest:guest@127.0.0.1:{self.tls_port}/"

    def url_for(self, user: str = "guest", password: str = "guest", vhost: str = "/") -> str:  # noqa: S107 - RabbitMQ's own default, which it accepts from this machine only
        """The URL for another user or virtual host."""
        path = "" if vhost == "/" else quote(vhost, safe="")
        return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{self.port}/{path}"

    # --- an operator's actions ------------------------------------------------------------------------------------

    def close_all_connections(self, reason: str = "closed by the test") -> int:
        """As ``rabbitmqctl close_all_connections``: 320 CONNECTION_FORCED with the reason; returns how many there were."""
        # `catch`: the call fails for a connection that ends by itself at the same moment; that one counts as closed.
        closing = f"[catch rabbit_networking:close_connection(P, {_text(reason)}) || P <- Ps]"
        return int(self.eval(f"Ps = rabbit_networking:local_connections(), {closing}, length(Ps)"))

    def connection_count(self) -> int:
        """How many AMQP connections are open (handshakes under way included)."""
        return int(self.eval("length(rabbit_networking:local_connections())"))

    def memory_alarm(self, on: bool) -> None:
        """Set the memory watermark to nothing or back to 0.4; returns when the alarm is (not) in force."""
        self.eval(f"vm_memory_monitor:set_vm_memory_high_watermark({0 if on else 0.4})")
        deadline = time.monotonic() + 30
        while (self.eval("rabbit_alarm:get_alarms()") != "[]") is not on:
            if time.monotonic() > deadline:
                raise RabbitMQFailed(f"the memory alarm did not go {'on' if on else 'off'}{self._log_tail()}")
            time.sleep(0.02)

    def drain(self) -> None:
        """As ``rabbitmq-upgrade drain``: put the node into maintenance.

        It closes its listeners and its connections (320, CONNECTION_FORCED), and gives the leaders of its quorum queues to
        other nodes. It goes on running; `revive` ends the maintenance.
        """
        self.eval("rabbit_maintenance:drain()")

    def revive(self) -> None:
        """As ``rabbitmq-upgrade revive``: end the maintenance; returns when the node accepts connections again."""
        self.eval("rabbit_maintenance:revive()")
        deadline = time.monotonic() + self._start_timeout
        while not _answers_amqp(self.port):
            if time.monotonic() > deadline:
                raise RabbitMQFailed(f"the node did not accept connections after its maintenance{self._log_tail()}")
            time.sleep(0.05)

    def add_user(self, user: str, password: str, *, vhost: str | None = "/") -> None:
        """Add a user with all permissions on `vhost` (None: on none)."""
        self._order(f"rabbit_auth_backend_internal:add_user({_text(user)}, {_text(password)}, {_ACTOR})")
        if vhost is not None:
            self.set_permissions(user, vhost=vhost)

    def delete_user(self, user: str) -> None:
        """Delete a user; its connections stay until closed."""
        self._order(f"rabbit_auth_backend_internal:delete_user({_text(user)}, {_ACTOR})")

    def change_password(self, user: str, password: str) -> None:
        """Change a password; open connections stay."""
        self._order(f"rabbit_auth_backend_internal:change_password({_text(user)}, {_text(password)}, {_ACTOR})")

    def set_permissions(
        self, user: str, *, vhost: str = "/", configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Set the three regular expressions. For a while a busy channel may still use the old ones: RabbitMQ caches."""
        patterns = ", ".join(map(_text, (configure, write, read)))
        self._order(
            f"rabbit_auth_backend_internal:set_permissions({_text(user)}, {_text(vhost)}, {patterns}, {_ACTOR})"
        )

    def clear_permissions(self, user: str, *, vhost: str = "/") -> None:
        """Take all permissions on the virtual host away."""
        self._order(f"rabbit_auth_backend_internal:clear_permissions({_text(user)}, {_text(vhost)}, {_ACTOR})")

    def add_vhost(self, vhost: str) -> None:
        """Add a virtual host; guest may use it."""
        self._order(f"rabbit_vhost:add({_text(vhost)}, {_ACTOR})")
        self.set_permissions("guest", vhost=vhost)

    def delete_vhost(self, vhost: str) -> None:
        """Delete a virtual host with all that is in it; connections to it are closed."""
        self._order(f"rabbit_vhost:delete({_text(vhost)}, {_ACTOR})")

    def queues(self, vhost: str = "/") -> dict[str, int]:
        """The depth (messages ready and unacknowledged) of each queue by name."""
        rows = f"[[element(4, N), M] || [{{name, N}}, {{messages, M}}] <- rabbit_amqqueue:info_all({_text(vhost)}, [name, messages])]"
        return dict(self._json(rows))

    def queue_depth(self, queue: str, vhost: str = "/") -> int:
        """Messages ready and unacknowledged in one queue. Raises `KeyError` when there is none of that name."""
        name = f"rabbit_misc:r({_text(vhost)}, queue, {_text(queue)})"
        depth = self.eval(
            f"case rabbit_amqqueue:lookup({name}) of"
            " {ok, Q} -> proplists:get_value(messages, rabbit_amqqueue:info(Q, [messages]));"
            " _ -> none end"
        )
        if depth == "none":
            raise KeyError(queue)
        return int(depth)

    # --- the two ways in ------------------------------------------------------------------------------------------

    def eval(self, expression: str, timeout: float = 30.0) -> str:
        """Evaluate an Erlang expression in the broker; returns the value as Erlang prints it.

        Raises `RabbitMQFailed` when it raises, is no Erlang, or does not end within `timeout` seconds.
        """
        broker = self._running()
        assert broker.stdin is not None
        self._evaluations += 1
        mark = f"@@{self._evaluations}@@"
        # Base64: any value is one line of ASCII, among the prompts of the shell.
        order = (
            f'io:format("~n{mark}~ts@@~n", [base64:encode(unicode:characters_to_binary(io_lib:format("~0tp",'
            f" [catch (fun() -> {expression} end)()])))]).\n"
        )
        seen = self._console.stat().st_size
        with suppress(BrokenPipeError):  # the loop below reports the end of the broker
            broker.stdin.write(order.encode())
            broker.stdin.flush()
        deadline = time.monotonic() + timeout
        pause = 0.001
        while True:
            with self._console.open("rb") as console:
                console.seek(seen)
                output = console.read().decode(errors="replace")
            _, found, rest = output.partition(f"\n{mark}")
            value, complete, _ = rest.partition("@@")
            if found and complete:
                answer = base64.b64decode(value).decode()
                if answer.startswith("{'EXIT',"):
                    raise RabbitMQFailed(f"{expression}: {answer}")
                return answer
            if broker.poll() is not None or time.monotonic() > deadline:
                raise RabbitMQFailed(f"no answer to {expression}: {output[-2000:]}")
            time.sleep(pause)
            pause = min(0.02, 2 * pause)

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run ``rabbitmqctl`` (one to three seconds); returns its output. Raises `RabbitMQFailed` when it fails."""
        assert self._bin is not None
        done = subprocess.run(
            self._command(self._bin / "rabbitmqctl", "-q", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self._folder,
            timeout=timeout,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RabbitMQFailed(f"rabbitmqctl {' '.join(arguments)}: status {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout

    # --- within ---------------------------------------------------------------------------------------------------

    @property
    def _console(self) -> Path:
        return self._folder / "console.log"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._broker is None or self._broker.poll() is not None:
            raise RabbitMQFailed("the broker is not running")
        return self._broker

    def _reap(self) -> None:
        """Kill the broker's processes and forget them."""
        broker, self._broker, self._frozen = self._broker, None, False
        if broker is not None:
            broker.kill()
            broker.wait()
            assert broker.stdin is not None
            with suppress(BrokenPipeError):
                broker.stdin.close()

    def _order(self, expression: str) -> None:
        answer = self.eval(expression)
        if answer.startswith("{error,"):
            raise RabbitMQFailed(f"{expression}: {answer}")

    def _json(self, expression: str) -> Any:
        """The value of an expression of lists, binaries and numbers."""
        packed = self.eval(f"base64:encode(iolist_to_binary(rabbit_json:encode({expression})))")
        return json.loads(base64.b64decode(packed.removeprefix('<<"').removesuffix('">>')))

    def _command(self, program: str | Path, *arguments: str) -> list[str | Path]:
        """The command line that runs a program of the broker's system; each step of it is an exec, so the pid stays."""
        if self._root is None:
            return [program, *arguments]
        script = 'mount --bind /proc "$0/proc" && exec chroot "$0" "$@"'
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, self._root, program),
            *arguments,
        ]

    def _start_watchdog(self, undo: ExitStack) -> int:
        """Start the watchdog and its epmd; the process group for the broker to join."""
        epmd = shutil.which("epmd") if self._root is None else "epmd"
        if epmd is None:
            raise RabbitMQMissing(
                "Erlang's epmd is not on PATH; on Debian and Ubuntu: sudo apt-get install erlang-base"
            )
        options = ("-port", str(self._epmd_port), "-address", "127.0.0.1")
        watchdog = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", Path(__file__).with_name("_watchdog.py"), self._folder),
                *self._command(epmd, *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        entrance, answer = watchdog.stdin, watchdog.stdout
        assert entrance is not None
        assert answer is not None

        def dismiss() -> None:
            entrance.close()
            watchdog.wait()

        undo.callback(dismiss)
        with answer:
            group = answer.readline()
        if not group:
            raise RabbitMQFailed("the watchdog of the broker's processes did not start")
        return int(group)

    def _inside(self, path: Path) -> Path:
        """The path as the broker sees it."""
        return path if self._root is None else Path("/", path.relative_to(self._root))

    def _brought_in(self, path: Path) -> Path:
        """The path at which the broker can read a file: in a chroot, the path of a copy."""
        if self._root is None:
            return path
        copy = self._folder / path.name
        shutil.copyfile(path, copy)
        copy.chmod(0o600)
        return self._inside(copy)

    def _describe(self) -> dict[str, str]:
        """Write the broker's files; returns the environment that makes the broker and rabbitmqctl use them."""
        folder = self._inside(self._folder)
        config = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "num_acceptors.tcp = 2",
            "disk_free_limit.absolute = 1MB",
            "log.console = false",
        ]
        if self._tls is not None:
            config += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                "num_acceptors.ssl = 1",
                f"ssl_options.cacertfile = {self._brought_in(self._tls.authority)}",
                f"ssl_options.certfile = {self._brought_in(self._tls.certificate)}",
                f"ssl_options.keyfile = {self._brought_in(self._tls.private_key)}",
                f"ssl_options.verify = verify_{'peer' if self._tls.verify_clients else 'none'}",
                f"ssl_options.fail_if_no_peer_cert = {str(self._tls.verify_clients).lower()}",
            ]
        (self._folder / "rabbitmq.conf").write_text("\n".join([*config, self._extra_config, ""]))
        (self._folder / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        if self._root is not None:
            # The system in the chroot may have other paths and languages than this machine.
            inherited = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        return inherited | {
            "HOME": str(self._inside(self._home)),  # Erlang makes its cookie there
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "no-rabbitmq-env.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "no-advanced.config"),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": str(folder / "log" / "broker.log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ERL_ARGS": _EMULATOR_FLAGS,
        }

    def _log_tail(self) -> str:
        lines: list[str] = []
        for path in (self._console, self._folder / "log" / "broker.log"):
            if path.exists():
                lines += [line for line in path.read_text(errors="replace").splitlines() if line.strip()][-60:]
        return "; its log ends:\n" + "\n".join(lines) if lines else "; it wrote no log"


def _require_chroot(root: Path, bin_folder: Path) -> None:
    """Raise `RabbitMQMissing` where no broker can be run from that folder."""
    if os.geteuid() != 0:
        raise RabbitMQMissing(f"the RabbitMQ in {root} runs in a chroot, which only root can enter")
    if not Path(f"{root}{bin_folder}", "rabbitmq-server").exists():
        raise RabbitMQMissing(f"there is no RabbitMQ in {root}")


#: Whom RabbitMQ names as having made a change.
_ACTOR = '<<"warrener">>'


def _state(task: Path) -> str:
    """Linux's letter for the state of a thread (proc(5)); "X" where it has ended."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _text(value: str) -> str:
    """An Erlang binary, byte by byte: no quoting to get wrong."""
    return f"<<{','.join(map(str, value.encode()))}>>"


def free_ports(count: int) -> list[int]:
    """Distinct ports without a listener, below the kernel's range for outgoing connections."""
    try:
        first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first_ephemeral = 32768
    draw = random.SystemRandom()
    ports: list[int] = []
    with ExitStack() as held:
        for _ in range(1000):
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", draw.randrange(min(20_000, first_ephemeral // 2), first_ephemeral)))
                ports.append(probe.getsockname()[1])
            if len(ports) == count:
                return ports
    raise RabbitMQFailed("no free ports on 127.0.0.1")


def port_is_free(port: int) -> bool:
    """Whether a program of this user can listen there on 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def _listens(port: int) -> bool:
    """Whether a program accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _answers_amqp(port: int) -> bool:
    """Whether the port answers the protocol header with a method frame (connection.start; AMQP 0-9-1, 2.2.4)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
            peer.sendall(_PROTOCOL_HEADER)
            return peer.recv(1) == b"\x01"
    except OSError:
        return False
