"""A PostgreSQL of one's own: for a test or a benchmark; never a system service.

``with PrivatePostgreSQL() as server:`` runs Debian's (or any) PostgreSQL from a temporary folder, on a port of its own on
127.0.0.1 and a socket in that folder. It is ready when it accepts a client's start-up message. Then the faults: `kill`,
`restart`, `freeze`.

*Nothing is left behind, in every way in which the owner can end.* The same watchdog as that of `PrivateRabbitMQ` reads a
pipe that only the owner holds open; at its end it kills the server and removes the folder. PostgreSQL does not run as
root: root's servers run as the user ``postgres``, or ``nobody`` where there is none.

Everything blocks; an async program calls it as ``await anyio.to_thread.run_sync(server.kill)``. One caller at a time.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from warrener.testing.rabbitmq import free_ports

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["PostgreSQLFailed", "PostgreSQLMissing", "PrivatePostgreSQL", "postgresql_bin"]

_USER = "warrener"


class PostgreSQLMissing(RuntimeError):
    """There is no PostgreSQL on this machine; the text says how to get one."""


class PostgreSQLFailed(RuntimeError):
    """The server did not start or obey in time; the text ends with its log."""


def postgresql_bin() -> Path:
    """Return the folder of PostgreSQL's own programs: this machine's, or those that `make postgresql` unpacked."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "warrener", "postgresql")
    found = [
        folder
        for root in (Path("/"), cache)
        for folder in sorted(root.glob("usr/lib/postgresql/*/bin"), reverse=True)
        if (folder / "postgres").exists() and (folder / "initdb").exists()
    ]
    on_path = shutil.which("postgres")
    if on_path and (Path(on_path).resolve().parent / "initdb").exists():
        found.append(Path(on_path).resolve().parent)
    if not found:
        raise PostgreSQLMissing(
            "no PostgreSQL on this machine; `make postgresql` unpacks Debian's into the user's cache"
        )
    return found[0]


class PrivatePostgreSQL:
    """One server, its folder and its port, from entering the block to leaving it."""

    def __init__(self, *, settings: dict[str, str] | None = None, start_timeout: float = 60.0) -> None:
        """Describe the server; nothing is started yet. `settings` are added to ``postgresql.conf``."""
        self._settings = settings or {}
        self._start_timeout = start_timeout
        self._resources = ExitStack()
        self._server: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []

    # --- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Make the cluster and start the server. Raises `PostgreSQLMissing` or `PostgreSQLFailed`."""
        self._bin = postgresql_bin()
        self._account = _account()
        with ExitStack() as undo:
            self._folder = Path(tempfile.mkdtemp(prefix="warrener-postgresql-"))
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            (self.port,) = free_ports(1)
            if "user" in self._account and "group" in self._account:
                os.chown(self._folder, self._account["user"], self._account["group"])
            self._group = self._start_watchdog(undo)
            undo.callback(self._reap)
            self._run("initdb", "-D", str(self._data), "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
            self._configure()
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
        """End the server and remove its folder. Idempotent."""
        if self._server is not None and self._server.poll() is None:
            self.thaw()
            # An immediate shutdown gives back the shared memory, which SIGKILL would leave in the kernel.
            self._server.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(10)
        self._resources.close()

    def start(self) -> None:
        """Start again after `kill` or `stop`, with the same port and data; does nothing while running."""
        if self.running:
            return
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                process_group=self._group,
                cwd=self._folder,
                **self._account,
            )
        deadline = time.monotonic() + self._start_timeout
        while not _answers(self.port):
            if self._server.poll() is not None:
                raise PostgreSQLFailed(f"the server ended with status {self._server.returncode}{self._log_tail()}")
            if time.monotonic() > deadline:
                raise PostgreSQLFailed(f"the server did not answer within {self._start_timeout:g} s{self._log_tail()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to the server and its sessions: what is not on disk is lost."""
        if self._server is not None:
            # SIGSTOP comes before the list of sessions is made, so that the server starts no session after that.
            self._server.send_signal(signal.SIGSTOP)
            children = self._children()
            self._server.kill()
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self._reap()
            # A session that still ends holds the shared memory, and the next server would refuse to start beside it.
            deadline = time.monotonic() + self._start_timeout
            while any(map(_runs, children)) and time.monotonic() < deadline:
                time.sleep(0.01)

    def stop(self) -> None:
        """Shut down at once and in order: sessions are ended, what is written is on disk."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(30)
            self._reap()

    def restart(self) -> None:
        """`stop`, then `start`."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._server is not None
        self._frozen = [self._server.pid, *self._children()]
        for pid in self._frozen:
            with suppress(ProcessLookupError):  # a session may have ended by now
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT; does nothing to a server that is not frozen."""
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    @property
    def running(self) -> bool:
        """Whether the process lives; a frozen one does."""
        return self._server is not None and self._server.poll() is None

    # --- using it -------------------------------------------------------------------------------------------------

    @property
    def dsn(self) -> str:
        """The URL of the database ``postgres``."""
        return self.dsn_for("postgres")

    def dsn_for(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Make an empty database; return its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", _USER, "-T", "template0", name)
        return self.dsn_for(name)

    # --- within ---------------------------------------------------------------------------------------------------

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _children(self) -> list[int]:
        assert self._server is not None
        found: list[int] = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if fields[1] == str(self._server.pid):
                    found.append(int(stat.parent.name))
        return found

    def _reap(self) -> None:
        server, self._server, self._frozen = self._server, None, []
        if server is not None:
            server.kill()
            server.wait()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment(),
            cwd=self._folder,
            timeout=120,
            text=True,
            check=False,
            **self._account,
        )
        if done.returncode:
            raise PostgreSQLFailed(f"{program}: status {done.returncode}: {done.stdout[-2000:]}")

    def _environment(self) -> dict[str, str]:
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "HOME": str(self._folder)}
        root = self._bin.parents[4]
        libraries = [str(folder) for folder in (root / "usr" / "lib").glob("*-linux-*")]
        if root != Path("/") and libraries:
            environment["LD_LIBRARY_PATH"] = ":".join(libraries)
        return environment

    def _configure(self) -> None:
        settings = {
            "listen_addresses": "'127.0.0.1'",
            "port": str(self.port),
            "unix_socket_directories": f"'{self._folder}'",
            "shared_buffers": "32MB",
            "max_connections": "50",
            "jit": "off",
            "timezone": "'GMT'",
            "log_timezone": "'GMT'",
        } | self._settings
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(lines)

    def _start_watchdog(self, undo: ExitStack) -> int:
        """Start the watchdog; return the process group for the server to join."""
        watchdog = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", Path(__file__).with_name("_watchdog.py"), self._folder),
                *(sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"),
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
            raise PostgreSQLFailed("the watchdog of the server did not start")
        return int(group)

    def _log_tail(self) -> str:
        if not self._log.exists():
            return "; it wrote no log"
        return "; its log ends:\n" + "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


class _Account(TypedDict, total=False):
    """Arguments of `subprocess.Popen`."""

    user: int
    group: int
    extra_groups: list[int]


def _account() -> _Account:
    """The account that root runs the server as; nothing for everybody else."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise PostgreSQLMissing("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")


def _answers(port: int) -> bool:
    """Whether a server accepts a start-up message and does not say that it is still starting."""
    parameters = f"user\0{_USER}\0database\0postgres\0\0".encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
            peer.sendall(struct.pack(">ii", 8 + len(parameters), 196608) + parameters)
            return peer.recv(1) == b"R"
    except OSError:
        return False


def _runs(pid: int) -> bool:
    """Whether the process exists and has not ended yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
