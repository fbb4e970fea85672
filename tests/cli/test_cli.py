"""The command line without a broker: what is printed, and the exit status."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

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


@pytest.mark.parametrize("package", ["starlette", "hypercorn", "prometheus_client"])
def test_serve_without_a_package_says_which_extra(package: str) -> None:
    """One line, status 2, no traceback, whatever part is missing."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; "
        "from warrener._cli.main import main; sys.exit(main(['serve', '--bind=127.0.0.1:0', '--url=amqp://localhost/']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("warrener serve: ")
    assert "pip install 'warrener[" in done.stderr
    assert done.stderr.count("\n") == 1


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
    """Whoever imports the module reads which extra to install."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try:\n    import {module}\nexcept ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout.startswith(("ImportError ", "ModuleNotFoundError "))
    assert f"{package}: pip install 'warrener[{extra}]'" in done.stdout


def test_check_and_machine_need_the_base_install_only() -> None:
    """The module of the command line imports no optional package."""
    code = (
        "import sys; import warrener._cli.main, warrener._cli.check, warrener._cli.demo, warrener._cli.publish; "
        "print(sorted({'rich', 'starlette', 'prometheus_client', 'hypercorn', 'opentelemetry', 'shtab'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout == "[]\n"
