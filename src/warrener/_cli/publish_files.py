"""The two files of ``warrener publish``: the place in the input, and the messages that were not confirmed."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any, cast

from attrs import asdict, define, field

from warrener._cli.publish_plan import Plan, Refused

__all__ = ["Place", "identity", "resumed", "write_place"]


@define
class Place:
    """How far the run has come: everything up to here has its outcome, and what was not confirmed is written down."""

    run: str = field(factory=lambda: str(uuid.uuid4()))
    #: How many messages of the input, and the digest of the input up to the last of them.
    messages: int = 0
    digest: str = ""
    confirmed: int = 0
    unconfirmed: int = 0
    #: Where they are written down, and how long that file is.
    file: str = ""
    file_size: int = 0

    def message_id(self, number: int) -> str:
        """Return the id of the message with that number, in this run and whatever resumes it."""
        return str(uuid.uuid5(uuid.UUID(self.run), str(number)))


def identity(plan: Plan) -> dict[str, object]:
    """What must be the same for a run to be resumed."""
    paths = [path if path == "-" else str(Path(path).absolute()) for path in plan.paths]
    target = plan.target
    return {
        "input": paths, "format": plan.form, "exchange": target.exchange, "routing_key": target.routing_key,
        "content_type": target.content_type,
    }  # fmt: skip


def resumed(plan: Plan) -> Place:
    """Return the place that the file of ``--resume`` holds, a new one where there is no such file."""
    if plan.resume is None or not plan.resume.exists():
        return Place()
    try:
        kept = cast("dict[str, Any]", json.loads(plan.resume.read_text()))
        place, of = Place(**kept["place"]), dict(kept["of"])
        uuid.UUID(place.run)
    except OSError as error:
        raise Refused(f"{plan.resume}: {os.strerror(error.errno or 0)}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refused(f"{plan.resume} is no file of --resume; name another") from None
    different = [name for name, value in identity(plan).items() if of.get(name) != value]
    if different:
        raise Refused(f"{plan.resume} belongs to another run: {', '.join(different)} differ; name another file")
    return place


def write_place(plan: Plan, place: Place) -> None:
    """Put the place in its file, whole or not at all."""
    assert plan.resume is not None
    new = plan.resume.with_name(f"{plan.resume.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        json.dump({"of": identity(plan), "place": asdict(place)}, out)
        out.flush()
        os.fsync(out.fileno())
    new.replace(plan.resume)
