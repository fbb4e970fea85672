"""``warrener completion``: print the completions for a shell. Needs the extra ``cli``."""

from __future__ import annotations

import argparse
import sys

from warrener._cli.common import Commands

__all__ = ["add_parser", "names_file"]


def add_parser(commands: Commands, whole: argparse.ArgumentParser) -> None:
    """Add ``completion`` to the commands; it completes the commands of `whole`."""
    parser = commands.add_parser(
        "completion",
        help="print the completions for a shell",
        description="Print the script with which a shell completes these commands. Needs the extra cli.",
        epilog="bash: warrener completion bash > ~/.local/share/bash-completion/completions/warrener    "
        "zsh: warrener completion zsh > _warrener, in a folder of $fpath",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=_run, whole=whole)


def names_file(action: argparse.Action) -> None:
    """Have shells complete this argument by the names of files; shtab expects these values."""
    vars(action)["complete"] = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


def _run(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        print("warrener completion: shtab is missing: pip install 'warrener[cli]'", file=sys.stderr)
        return 2
    print(shtab.complete(args.whole, args.shell))
    return 0
