"""The command line without a broker: what is printed, and the exit status."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from warrener._cli import check, demo, demo_broker
from warrener._cli import machine as machine_table
from warrener._cli.main import main


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RABBITMQ_URL", raising=False)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], machine_table.markdown),
        (["--format=mermaid"], machine_table.mermaid),
        (["--format=dot"], machine_table.dot),
    ],
)
def test_machine_prints_what_the_machine_derives(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: object
) -> None:
    """The command prints the very text that the machine's table makes, and nothing else."""
    assert main(["machine", *arguments]) == 0
    assert capsys.readouterr().out == expected()  # type: ignore[operator]


def test_check_without_a_url_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither URL nor RABBITMQ_URL: one failed step, no traceback, status 1."""
    assert main(["check"]) == 1
    assert "RABBITMQ_URL" in capsys.readouterr().out


def test_check_of_a_port_where_nobody_listens(capsys: pytest.CaptureFixture[str], closed_port: int) -> None:
    """A refused connection fails the first step, names the address, and shows no password."""
    assert main(["check", f"amqp://guest:s3cret-w0rd@127.0.0.1:{closed_port}/", "--driver=aiormq"]) == 1
    printed = "".join(capsys.readouterr())
    assert printed.startswith("FAIL  connect    the connection was refused")
    assert f"127.0.0.1:{closed_port}" in printed
    assert "s3cret-w0rd" not in printed


def test_a_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command: usage, status 2, as argparse does."""
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "usage: warrener" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_prints_a_script_that_knows_the_commands(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    """All commands and their options, from the parser itself."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    files = "_files" if shell == "zsh" else "_shtab_compgen_files"
    words = ("check", "demo", "publish", "serve", "--max-unconfirmed", files)
    assert [word for word in words if word not in script] == []


def test_completion_without_its_package_says_which_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, status 2."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == "warrener completion: shtab is missing: pip install 'warrener[cli]'\n"


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "h11", "prometheus_client"])
def test_serve_without_a_package_says_which_extra(package: str) -> None:
    """One line, status 2, no traceback, whatever part is missing."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; "
        "from warrener._cli.main import main; sys.exit(main(['serve', '--bind=127.0.0.1:0', '--url=amqp://localhost/']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("warrener serve: ")
    assert "pip install 'warrener[ml]'" in done.stderr
    assert done.stderr.count("\n") == 1


#: What the extras bring, and aiormq, which only its driver imports.
OPTIONAL = {
    "aiormq", "cattrs", "h11", "hypercorn", "hypothesis", "opentelemetry", "prometheus_client", "psycopg", "pytest",
    "rich", "shtab", "starlette", "uvicorn",
}  # fmt: skip


def loaded_by(module: str) -> set[str]:
    """Return the names of all modules that the import of one loads, in a fresh interpreter."""
    code = f"import sys; import {module}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    )


@pytest.mark.parametrize("module", ["warrener", "warrener._cli.main"])
def test_an_import_loads_neither_aiormq_nor_an_extra(module: str) -> None:
    """The library and the parser of the command line start with the base install, and quickly."""
    assert set() == OPTIONAL & {name.partition(".")[0] for name in loaded_by(module)}


def test_the_command_line_loads_the_ml_producer_only_when_it_runs() -> None:
    """The parser knows every command and imports nothing of warrener.ml or warrener.testing."""
    loaded = loaded_by("warrener._cli.main")
    assert set() == {name for name in loaded if name.startswith(("warrener.ml", "warrener.testing"))}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([b"a", b"b"], "1 of 3 messages are missing: the queue held 2"),
        ([], "3 of 3 messages are missing: the queue held 0"),
        ([b"a", b"b", b"c", b"c"], "3 messages were published, and the queue held 4"),
        ([b"a", b"c", b"b"], "the 3 messages were read in another order than they were published"),
        ([b"a", b"b", b"x"], "1 of 3 messages were read with another body than they were published with"),
    ],
)
def test_check_says_how_the_messages_that_it_read_differ(found: list[bytes], text: str) -> None:
    """A sentence that is printed behind FAIL says what failed."""
    assert text == check._difference(found, [b"a", b"b", b"c"])


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("warrener.http", "starlette", "http"),
        ("warrener.metrics", "prometheus_client", "metrics"),
        ("warrener.ml.app", "starlette", "http"),
        ("warrener.ml.metrics", "prometheus_client", "metrics"),
        ("warrener.testing.strategies", "hypothesis", "testing"),
    ],
)
def test_a_missing_extra_is_an_import_error_that_names_it(module: str, package: str, extra: str) -> None:
    """Code that treats an add-on as optional catches ImportError, as for every other package."""
    code = f"""
import sys; sys.modules[{package!r}] = None
try:
    import {module}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    assert f"pip install 'warrener[{extra}]'" in done.stdout


def test_the_demo_uses_the_embedded_broker_where_there_is_no_rabbitmq(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says which broker it is."""
    monkeypatch.setattr(demo_broker, "rabbitmq_is_missing", lambda: True)
    monkeypatch.setattr(demo, "_tell", lambda *_args, **_options: 0)
    assert main(["demo"]) == 0
    assert "Broker: the embedded broker of warrener, on port " in capsys.readouterr().out
