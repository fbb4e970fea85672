"""The set-up changes nothing but the cache folder, however it ends: packages are unpacked, never installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

#: Stands for apt-get: notes that it was called, "downloads" one package, and waits where a test wants that.
APT_GET = """#!/bin/sh
echo "$@" >>"$FAKES/calls"
if [ -e "$FAKES/fail" ]; then echo "E: no such package" >&2; exit 100; fi
case "$*" in *" install "*) ;; *) exit 0 ;; esac
for option in "$@"; do
    case $option in Dir::Cache=*) cache=${option#Dir::Cache=} ;; esac
done
touch "$cache/archives/one.deb"
if [ -e "$FAKES/begun" ]; then echo begun >"$FAKES/begun" && read -r go <"$FAKES/go"; fi
"""

#: Stands for dpkg-deb: unpacks Erlang's start script.
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/usr/lib/erlang/bin"
echo 'ROOTDIR=/usr/lib/erlang' >"$3/usr/lib/erlang/bin/erl"
"""


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Path]:
    """Stand-ins for Debian's programs, and a place for what they leave."""
    if shutil.which("flock") is None:
        pytest.skip("flock is on Linux only, as Debian's packages are")
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, text in {"apt-get": APT_GET, "dpkg-deb": DPKG_DEB}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def unpack(fakes: Path) -> subprocess.Popen[str]:
    """Start a set-up with the stand-ins first on PATH."""
    return subprocess.Popen(
        [str(SCRIPTS / "unpack.sh"), str(fakes.parent / "cache" / "broker"), "rabbitmq-server"],
        env=os.environ | {"PATH": f"{fakes}:{os.environ['PATH']}", "FAKES": str(fakes)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def status(process: subprocess.Popen[str]) -> int:
    """Wait for its end."""
    process.communicate()
    return process.returncode


def hold(fakes: Path) -> None:
    """Have the stand-in say when it has "downloaded", and go on when told."""
    os.mkfifo(fakes / "begun")
    os.mkfifo(fakes / "go")


def left(fakes: Path) -> set[str]:
    """What lies in the cache, the lock aside."""
    return {path.name for path in (fakes.parent / "cache").iterdir()} - {".lock"}


def calls(fakes: Path) -> int:
    """How often apt-get was called."""
    return len((fakes / "calls").read_text().splitlines())


def test_what_is_unpacked_runs_from_where_it_lies(fakes: Path) -> None:
    """The folder appears complete, Erlang's script names it, and a second set-up does nothing."""
    assert status(unpack(fakes)) == 0
    script = fakes.parent / "cache" / "broker" / "usr" / "lib" / "erlang" / "bin" / "erl"
    assert script.read_text() == f'ROOTDIR="{fakes.parent / "cache" / "broker" / "usr" / "lib" / "erlang"}"\n'
    assert status(unpack(fakes)) == 0
    assert (left(fakes), calls(fakes)) == ({"broker"}, 1)


def test_a_killed_set_up_leaves_nothing_that_the_next_one_trusts(fakes: Path) -> None:
    """SIGKILL in the middle of a download: no folder of that name; the next set-up makes it and clears up."""
    hold(fakes)
    killed = unpack(fakes)
    assert (fakes / "begun").read_text() == "begun\n"
    os.killpg(killed.pid, signal.SIGKILL)
    assert status(killed) == -signal.SIGKILL
    (fakes / "begun").unlink()
    assert "broker" not in left(fakes)

    assert status(unpack(fakes)) == 0
    assert left(fakes) == {"broker"}


def test_of_two_at_once_one_downloads(fakes: Path) -> None:
    """The second waits for the first, and finds the folder made."""
    hold(fakes)
    both = [unpack(fakes), unpack(fakes)]
    (fakes / "begun").read_text()
    (fakes / "go").write_text("go\n")
    assert [status(each) for each in both] == [0, 0]
    assert (left(fakes), calls(fakes)) == ({"broker"}, 1)


def test_what_cannot_be_had_is_told_in_one_line_of_advice(fakes: Path) -> None:
    """Status 1, apt's own words, and the command for an administrator; nothing is left."""
    (fakes / "fail").touch()
    said = unpack(fakes)
    _, error = said.communicate()
    assert said.returncode == 1
    assert "E: no such package" in error
    assert error.splitlines()[-1].endswith("To install by hand, as root: apt-get install rabbitmq-server")
    assert left(fakes) == set()


def test_no_script_installs_or_forbids_services_on_this_machine() -> None:
    """Neither policy-rc.d of this machine nor an installing apt-get stands in any script; a chroot's own may."""
    for script in SCRIPTS.glob("*.sh"):
        lines = [line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
        own = [line.replace('"$1/usr', "") for line in lines]
        assert [line for line in own if "/usr/sbin/policy-rc.d" in line] == []
        assert [line for line in own if "sudo" in line] == []
