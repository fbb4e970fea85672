"""What the arguments of ``warrener publish`` ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from attrs import frozen

from warrener._cli.publish_input import Format, Target

__all__ = ["Plan", "Refused"]


@frozen(kw_only=True)
class Plan:
    """What the command line asks for."""

    paths: Sequence[str]
    form: Format
    target: Target
    url: str | None = None
    driver: Literal["native", "aiormq"] = "native"
    #: Seconds for each message, its wait through an outage included.
    timeout: float = math.inf
    #: How many messages may be without an outcome.
    window: int = 1000
    #: Maximum number of messages that may fail; one more ends the run.
    tolerated: int = 100
    #: Where to write down what was not confirmed; None: a name that says which run it was.
    unconfirmed: Path | None = None
    resume: Path | None = None
    #: Lines in place of a bar.
    plain: bool = False
    quiet: bool = False


class Refused(Exception):
    """The run cannot begin, or go on; its text is for the user."""
