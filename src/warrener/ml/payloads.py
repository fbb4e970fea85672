"""What the ML tasks are made of: frozen records, checked when they are made, so that nothing invalid is ever sent.

Each check names the field by its full path (``content.text``, ``tasks[3].options.backend``) and never shows its value,
which may be private. `from_mapping` builds the same records from decoded JSON and refuses keys that do not exist: the
system that this one replaces sent ``maxLength`` to workers that read ``max_length``, and nobody noticed.

On the wire every key is snake_case but one: the transcription worker reads ``mediaUrl``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, cast
from urllib.parse import urlsplit

from attrs import NOTHING, Attribute, field, fields, frozen

from warrener.errors import WarrenerError, printable

__all__ = [
    "BACKENDS",
    "Backend",
    "Embed",
    "EmbedBatch",
    "EmbedBatchFields",
    "EmbedContent",
    "EmbedFields",
    "EmbedOptions",
    "InvalidPayload",
    "Payload",
    "Summarize",
    "SummarizeContent",
    "SummarizeFields",
    "SummarizeOptions",
    "Transcribe",
    "TranscribeContent",
    "TranscribeFields",
    "TranscribeOptions",
    "from_keywords",
    "from_mapping",
    "wire_form",
]

Backend: TypeAlias = Literal["api", "local"]
BACKENDS: tuple[Backend, ...] = ("api", "local")

#: How deeply `metadata` may nest, and how many values it may hold: a bound for every JSON parser on the way.
MAX_DEPTH = 32
MAX_VALUES = 10_000
#: How many texts one embed_batch task may hold.
MAX_TASKS = 10_000


class InvalidPayload(WarrenerError, ValueError):
    """A task cannot be sent as it is; `field` is the field at fault. Nothing was sent. The text never shows a value."""

    #: Nothing was sent, so nothing can have arrived.
    may_have_been_delivered = False

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field} {self.reason}"


# --- checks; each returns an attrs validator that names the field by its full path ---------------------------------

_Check: TypeAlias = Callable[[Any, "Attribute[Any]", Any], None]


def _text_fault(value: object, *, longest: int | None = None) -> str | None:
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if not value.strip():
        return "must not be empty"
    if longest is not None and len(value) > longest:
        return f"must have at most {longest} characters, not {len(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode text (it holds half of a surrogate pair)"
    return None


def _text(path: str, *, longest: int | None = None, optional: bool = False) -> _Check:
    def check(_record: object, _attribute: Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        fault = _text_fault(value, longest=longest)
        if fault is not None:
            raise InvalidPayload(path, fault)

    return check


def _one_of(path: str, choices: Iterable[str], *, optional: bool = False) -> _Check:
    allowed = tuple(choices)

    def check(_record: object, _attribute: Attribute[Any], value: object) -> None:
        if (optional and value is None) or (isinstance(value, str) and value in allowed):
            return
        raise InvalidPayload(path, f"must be one of {', '.join(allowed)}")

    return check


def _flag(path: str, *, optional: bool = False) -> _Check:
    def check(_record: object, _attribute: Attribute[Any], value: object) -> None:
        if not (isinstance(value, bool) or (optional and value is None)):
            raise InvalidPayload(path, f"must be true or false, not {type(value).__name__}")

    return check


def _positive_int(path: str) -> _Check:
    def check(_record: object, _attribute: Attribute[Any], value: object) -> None:
        if value is not None and not (type(value) is int and 0 < value < 2**31):
            raise InvalidPayload(path, "must be a positive integer")

    return check


def _seconds(path: str) -> _Check:
    def check(_record: object, _attribute: Attribute[Any], value: object) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf):
            raise InvalidPayload(path, "must be a number of seconds, zero or more")

    return check


def _media_url(_record: object, _attribute: Attribute[Any], value: object) -> None:
    """Check for http(s)://, s3:// or a file path: what the transcription worker can open."""
    path = "content.media_url"
    fault = _text_fault(value, longest=4096)
    if fault is not None:
        raise InvalidPayload(path, fault)
    location = cast("str", value)
    if any(ord(char) < 32 or ord(char) == 127 for char in location):
        raise InvalidPayload(path, "must not hold control characters")
    if "://" not in location:
        return
    try:
        parts = urlsplit(location)
        usable = parts.scheme in ("http", "https", "s3") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidPayload(path, "must be an http://, https:// or s3:// address with a host, or a file path")


def _json_object(path: str) -> _Check:
    def check(_record: object, _attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, Mapping):
            raise InvalidPayload(path, f"must be an object, not {type(value).__name__}")
        level: list[object] = [value]
        values = 0
        for _ in range(MAX_DEPTH):
            level = [item for outer in level for item in _items(path, outer)]
            values += len(level)
            if values > MAX_VALUES:
                raise InvalidPayload(path, f"must not hold more than {MAX_VALUES} values")
            if not level:
                return
        raise InvalidPayload(path, f"must not nest deeper than {MAX_DEPTH} levels")

    return check


def _items(path: str, value: object) -> Iterable[object]:
    """Return the values directly inside a JSON value; refuse a value that JSON cannot hold."""
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value)
        for key in pairs:
            if not isinstance(key, str) or (key and _text_fault(f"-{key}") is not None):
                raise InvalidPayload(path, "must have keys that are valid text")
        return pairs.values()
    if isinstance(value, (list, tuple)):
        return cast("Sequence[object]", value)
    if isinstance(value, str):
        if value and _text_fault(f"-{value}") is not None:
            raise InvalidPayload(path, "must hold valid Unicode text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidPayload(path, "must not hold NaN or infinite numbers: JSON has none")
    elif value is not None and not isinstance(value, (bool, int)):
        raise InvalidPayload(path, f"must hold JSON values only, not {type(value).__name__}")
    return ()


def _record(path: str, kind: type) -> _Check:
    def check(_record: object, _attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            raise InvalidPayload(path, f"must be a {kind.__name__}, not {type(value).__name__}")

    return check


# --- the records -------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class SummarizeContent:
    """What to summarise."""

    text: str = field(validator=_text("content.text"), repr=False)
    title: str | None = field(default=None, validator=_text("content.title", optional=True), repr=False)
    url: str | None = field(default=None, validator=_text("content.url", longest=4096, optional=True), repr=False)
    content_type: str | None = field(default=None, validator=_text("content.content_type", longest=255, optional=True))


@frozen(kw_only=True)
class SummarizeOptions:
    """How to summarise; for a field that is None, the worker chooses."""

    provider: str | None = field(default=None, validator=_text("options.provider", longest=255, optional=True))
    model: str | None = field(default=None, validator=_text("options.model", longest=255, optional=True))
    max_length: int | None = field(default=None, validator=_positive_int("options.max_length"))
    style: Literal["brief", "detailed", "bullets"] | None = field(
        default=None, validator=_one_of("options.style", ("brief", "detailed", "bullets"), optional=True)
    )
    #: None: the preferred backend of the settings.
    backend: Backend | None = field(default=None, validator=_one_of("options.backend", BACKENDS, optional=True))


@frozen(kw_only=True)
class Summarize:
    """Summarise one shared item."""

    share_id: str = field(validator=_text("share_id", longest=255))
    content: SummarizeContent = field(
        validator=_record("content", SummarizeContent), metadata={"record": SummarizeContent}
    )
    options: SummarizeOptions = field(
        default=SummarizeOptions(),
        validator=_record("options", SummarizeOptions),
        metadata={"record": SummarizeOptions},
    )


@frozen(kw_only=True)
class TranscribeContent:
    """What to transcribe."""

    #: http(s)://, s3:// or a file path; ``mediaUrl`` on the wire.
    media_url: str = field(validator=_media_url, repr=False, metadata={"wire": "mediaUrl"})
    #: Length of the recording in seconds, where known.
    duration: float | None = field(default=None, validator=_seconds("content.duration"))


@frozen(kw_only=True)
class TranscribeOptions:
    """How to transcribe; for a field that is None, the worker chooses."""

    language: str | None = field(default=None, validator=_text("options.language", longest=35, optional=True))
    normalize: bool = field(default=True, validator=_flag("options.normalize"))
    prompt: str | None = field(default=None, validator=_text("options.prompt", optional=True), repr=False)
    skip_silent: bool | None = field(default=None, validator=_flag("options.skip_silent", optional=True))
    #: None: the preferred backend of the settings.
    backend: Backend | None = field(default=None, validator=_one_of("options.backend", BACKENDS, optional=True))


@frozen(kw_only=True)
class Transcribe:
    """Transcribe one recording."""

    share_id: str = field(validator=_text("share_id", longest=255))
    content: TranscribeContent = field(
        validator=_record("content", TranscribeContent), metadata={"record": TranscribeContent}
    )
    options: TranscribeOptions = field(
        default=TranscribeOptions(),
        validator=_record("options", TranscribeOptions),
        metadata={"record": TranscribeOptions},
    )


@frozen(kw_only=True)
class EmbedContent:
    """What to embed."""

    text: str = field(validator=_text("content.text"), repr=False)
    type: Literal["caption", "transcript", "article", "comment", "tweet"] = field(
        default="caption",
        validator=_one_of("content.type", ("caption", "transcript", "article", "comment", "tweet")),
    )
    #: Any JSON object; handed to the worker as it is.
    metadata: Mapping[str, object] = field(factory=dict, validator=_json_object("content.metadata"), repr=False)


@frozen(kw_only=True)
class EmbedOptions:
    """How to embed; for a field that is None, the worker chooses."""

    embedding_type: Literal["content", "summary", "composite"] = field(
        default="content", validator=_one_of("options.embedding_type", ("content", "summary", "composite"))
    )
    force_model: str | None = field(default=None, validator=_text("options.force_model", longest=255, optional=True))
    chunk_strategy: Literal["none", "transcript", "paragraph", "sentence", "fixed"] | None = field(
        default=None,
        validator=_one_of(
            "options.chunk_strategy", ("none", "transcript", "paragraph", "sentence", "fixed"), optional=True
        ),
    )
    #: None: the preferred backend of the settings.
    backend: Backend | None = field(default=None, validator=_one_of("options.backend", BACKENDS, optional=True))


@frozen(kw_only=True)
class Embed:
    """Make the embeddings of one text."""

    share_id: str = field(validator=_text("share_id", longest=255))
    content: EmbedContent = field(validator=_record("content", EmbedContent), metadata={"record": EmbedContent})
    options: EmbedOptions = field(
        default=EmbedOptions(), validator=_record("options", EmbedOptions), metadata={"record": EmbedOptions}
    )


_HOW_MANY = f"must hold 1 to {MAX_TASKS} tasks"


def _embeds(_record: object, _attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not 0 < len(cast("tuple[object, ...]", value)) <= MAX_TASKS:
        raise InvalidPayload("tasks", _HOW_MANY)
    for index, task in enumerate(cast("tuple[object, ...]", value)):
        if not isinstance(task, Embed):
            raise InvalidPayload(f"tasks[{index}]", f"must be an Embed, not {type(task).__name__}")


def _as_tuple(tasks: Iterable[Embed]) -> tuple[Embed, ...]:
    kind = type(tasks).__name__
    if isinstance(tasks, (str, bytes, Mapping)) or not isinstance(tasks, Iterable):
        raise InvalidPayload("tasks", f"must be a list of tasks, not {kind}")
    return tuple(tasks)


@frozen(kw_only=True)
class EmbedBatch:
    """Make the embeddings of several texts with one task."""

    tasks: Sequence[Embed] = field(converter=_as_tuple, validator=_embeds, metadata={"records": Embed})


# --- the same as keywords, flat or nested, for type checkers -----------------------------------------------------------


class SummarizeFields(TypedDict, total=False):
    """The fields of `Summarize`, as keywords of `MLProducer.summarize`."""

    share_id: str
    content: SummarizeContent | Mapping[str, object]
    options: SummarizeOptions | Mapping[str, object]
    text: str
    title: str | None
    url: str | None
    content_type: str | None
    provider: str | None
    model: str | None
    max_length: int | None
    style: Literal["brief", "detailed", "bullets"] | None


class TranscribeFields(TypedDict, total=False):
    """The fields of `Transcribe`, as keywords of `MLProducer.transcribe`."""

    share_id: str
    content: TranscribeContent | Mapping[str, object]
    options: TranscribeOptions | Mapping[str, object]
    media_url: str
    duration: float | None
    language: str | None
    normalize: bool
    prompt: str | None
    skip_silent: bool | None


class EmbedFields(TypedDict, total=False):
    """The fields of `Embed`, as keywords of `MLProducer.embed`."""

    share_id: str
    content: EmbedContent | Mapping[str, object]
    options: EmbedOptions | Mapping[str, object]
    text: str
    type: Literal["caption", "transcript", "article", "comment", "tweet"]
    metadata: Mapping[str, object]
    embedding_type: Literal["content", "summary", "composite"]
    force_model: str | None
    chunk_strategy: Literal["none", "transcript", "paragraph", "sentence", "fixed"] | None


class EmbedBatchFields(TypedDict, total=False):
    """The fields of `EmbedBatch`, as keywords of `MLProducer.embed_batch`."""

    tasks: Sequence[Embed | Mapping[str, object]]


Payload: TypeAlias = Summarize | Transcribe | Embed | EmbedBatch

_P = TypeVar("_P")


# --- from the outside, and to the wire -----------------------------------------------------------------------------


def from_mapping(kind: type[_P], value: object, path: str = "") -> _P:
    """Return the record of `kind` that the decoded JSON `value` stands for.

    Raises `InvalidPayload`, which names the field: missing, unknown, or not valid. The key ``mediaUrl``
    means ``media_url``: it is the name on the wire.
    """
    here = path.removesuffix(".") or "the payload"
    if not isinstance(value, Mapping):
        raise InvalidPayload(here, f"must be an object, not {type(value).__name__}")
    given = dict(cast("Mapping[object, object]", value))
    arguments: dict[str, object] = {}
    attributes = fields(cast("Any", kind))
    known = {attribute.name for attribute in attributes} | {attribute.metadata.get("wire") for attribute in attributes}
    for key in given:
        if key not in known:
            raise InvalidPayload(f"{path}{_shown(key)}", _unknown(key, attributes))
    for attribute in attributes:
        names = [name for name in (attribute.name, attribute.metadata.get("wire")) if name in given]
        if not names:
            if attribute.default is NOTHING:
                raise InvalidPayload(f"{path}{attribute.name}", "is missing")
            continue
        if len(names) > 1:
            raise InvalidPayload(f"{path}{attribute.name}", f"is given twice, as {' and as '.join(map(str, names))}")
        item = given[names[0]]
        if "record" in attribute.metadata and not isinstance(item, attribute.metadata["record"]):
            item = from_mapping(attribute.metadata["record"], item, f"{path}{attribute.name}.")
        elif "records" in attribute.metadata:
            item = _records(attribute.metadata["records"], item, f"{path}{attribute.name}")
        arguments[attribute.name] = item
    return kind(**arguments)


def _records(kind: type[_P], value: object, path: str) -> tuple[_P, ...]:
    if not isinstance(value, (list, tuple)):
        raise InvalidPayload(path, f"must be a list of tasks, not {type(value).__name__}")
    items = cast("Sequence[object]", value)
    if len(items) > MAX_TASKS:
        raise InvalidPayload(path, _HOW_MANY)
    records: list[_P] = []
    for index, item in enumerate(items):
        if isinstance(item, kind):
            records.append(item)
            continue
        try:
            records.append(from_mapping(kind, item))
        except InvalidPayload as error:
            where = f"{path}[{index}]"
            raise InvalidPayload(
                where if error.field == "the payload" else f"{where}.{error.field}", error.reason
            ) from None
    return tuple(records)


def _shown(key: object) -> str:
    """Return a key as text for people; an empty or blank key is put in quotes."""
    text = printable(key, 64)
    return text if text.strip() else f'"{text}"'


def _unknown(key: object, attributes: Iterable[Attribute[Any]]) -> str:
    names = [attribute.name for attribute in attributes]
    snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in str(key)[:64])
    close = difflib.get_close_matches(snake, names, n=1)
    return f"is not a field; did you mean {close[0]}?" if close else f"is not a field; there are {', '.join(names)}"


def from_keywords(kind: type[_P], keywords: Mapping[str, object]) -> _P:
    """Return the record that keywords describe, nested (``content=…``) or flat (``text=…, style=…``)."""
    nested: dict[str, object] = {}
    flat = dict(keywords)
    for attribute in fields(cast("Any", kind)):
        if attribute.name in flat:
            nested[attribute.name] = flat.pop(attribute.name)
        elif "record" in attribute.metadata:
            names = [inner.name for inner in fields(attribute.metadata["record"])]
            nested[attribute.name] = {name: flat.pop(name) for name in names if name in flat}
    return from_mapping(kind, nested | flat)


def wire_form(payload: Payload, backend: Callable[[Backend | None], Backend]) -> dict[str, object]:
    """Return the Celery kwargs of `payload`; `backend` decides for options that name none.

    A field that is None is left out, but ``options`` is always there, with its backend.
    """
    if isinstance(payload, EmbedBatch):
        return {"tasks": [wire_form(task, backend) for task in payload.tasks]}
    options = _present(payload.options)
    options["backend"] = backend(payload.options.backend)
    return {"share_id": payload.share_id, "content": _present(payload.content), "options": options}


def _present(record: Any) -> dict[str, object]:
    values = ((attribute, getattr(record, attribute.name)) for attribute in fields(cast("Any", type(record))))
    return {attribute.metadata.get("wire", attribute.name): value for attribute, value in values if value is not None}
