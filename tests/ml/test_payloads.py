"""Payloads are checked before anything is sent; the error names the field and shows no value."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from warrener.ml import payloads
from warrener.ml.payloads import (
    Backend,
    Embed,
    EmbedBatch,
    EmbedContent,
    InvalidPayload,
    Payload,
    Summarize,
    SummarizeContent,
    SummarizeOptions,
    Transcribe,
    TranscribeContent,
    from_keywords,
    from_mapping,
    wire_form,
)


def api(chosen: Backend | None) -> Backend:
    return chosen or "api"


def test_summarize_on_the_wire_has_its_options_and_leaves_out_what_is_none() -> None:
    """Keys are snake_case, absent options are absent, the backend is always there."""
    task = Summarize(
        share_id="s-1",
        content=SummarizeContent(text="Hello", content_type="text/html"),
        options=SummarizeOptions(max_length=200, style="brief"),
    )
    assert {
        "share_id": "s-1",
        "content": {"text": "Hello", "content_type": "text/html"},
        "options": {"max_length": 200, "style": "brief", "backend": "api"},
    } == wire_form(task, api)


def test_transcribe_on_the_wire_has_the_one_camel_case_key() -> None:
    """The worker reads mediaUrl; normalize is true unless told otherwise."""
    task = Transcribe(share_id="s-1", content=TranscribeContent(media_url="s3://bucket/a.mp3", duration=3.5))
    assert {
        "share_id": "s-1",
        "content": {"mediaUrl": "s3://bucket/a.mp3", "duration": 3.5},
        "options": {"normalize": True, "backend": "api"},
    } == wire_form(task, api)


def test_embed_always_sends_options_type_and_metadata() -> None:
    """The defaults of embed are on the wire, because its worker has none."""
    task = Embed(share_id="s-1", content=EmbedContent(text="Hi"))
    assert {
        "share_id": "s-1",
        "content": {"text": "Hi", "type": "caption", "metadata": {}},
        "options": {"embedding_type": "content", "backend": "api"},
    } == wire_form(task, api)


def test_embed_batch_is_a_list_of_embeds_under_tasks() -> None:
    """Each task of a batch looks like an embed of its own."""
    one = Embed(share_id="s-1", content=EmbedContent(text="Hi"))
    assert {"tasks": [wire_form(one, api)] * 2} == wire_form(EmbedBatch(tasks=[one, one]), api)


PRIVATE = "my private thoughts"


@pytest.mark.parametrize(
    ("kind", "payload", "field"),
    [
        (Summarize, {"content": {"text": "x"}}, "share_id"),
        (Summarize, {"share_id": "", "content": {"text": "x"}}, "share_id"),
        (Summarize, {"share_id": "s" * 256, "content": {"text": "x"}}, "share_id"),
        (Summarize, {"share_id": "s"}, "content"),
        (Summarize, {"share_id": "s", "content": {}}, "content.text"),
        (Summarize, {"share_id": "s", "content": {"text": 5}}, "content.text"),
        (Summarize, {"share_id": "s", "content": {"text": " \n"}}, "content.text"),
        (Summarize, {"share_id": "s", "content": {"text": "half \ud800"}}, "content.text"),
        (Summarize, {"share_id": "s", "content": "x"}, "content"),
        (Summarize, {"share_id": "s", "content": {"text": "x"}, "options": None}, "options"),
        (Summarize, {"share_id": "s", "content": {"text": "x"}, "options": {"style": PRIVATE}}, "options.style"),
        (Summarize, {"share_id": "s", "content": {"text": "x"}, "options": {"style": ["brief"]}}, "options.style"),
        (Summarize, {"share_id": "s", "content": {"text": "x"}, "options": {"max_length": 0}}, "options.max_length"),
        (Summarize, {"share_id": "s", "content": {"text": "x"}, "options": {"max_length": True}}, "options.max_length"),
        (Summarize, {"share_id": "s", "content": {"text": "x"}, "options": {"maxLength": 9}}, "options.maxLength"),
        (Summarize, {"share_id": "s", "content": {"text": "x"}, "options": {"backend": "gpu"}}, "options.backend"),
        (Summarize, {"shareId": "s", "share_id": "s", "content": {"text": "x"}}, "shareId"),
        (Summarize, {"": "x"}, '""'),
        (Summarize, {"share_id": "s", "content": {" ": "x"}}, 'content." "'),
        (EmbedBatch, {"tasks": [{"": "x"}]}, 'tasks[0].""'),
        (Summarize, [PRIVATE], "the payload"),
        (Transcribe, {"share_id": "s", "content": {"media_url": "ftp://h/a"}}, "content.media_url"),
        (Transcribe, {"share_id": "s", "content": {"media_url": "http:///a"}}, "content.media_url"),
        (Transcribe, {"share_id": "s", "content": {"media_url": "http://[/a"}}, "content.media_url"),
        (Transcribe, {"share_id": "s", "content": {"media_url": "/a\n/b"}}, "content.media_url"),
        (Transcribe, {"share_id": "s", "content": {"mediaUrl": "/a", "media_url": "/a"}}, "content.media_url"),
        (Transcribe, {"share_id": "s", "content": {"media_url": "/a", "duration": -1}}, "content.duration"),
        (Transcribe, {"share_id": "s", "content": {"media_url": "/a", "duration": float("nan")}}, "content.duration"),
        (Transcribe, {"share_id": "s", "content": {"media_url": "/a"}, "options": {"normalize": 1}}, "options.normalize"),
        (Embed, {"share_id": "s", "content": {"text": "x", "type": "song"}}, "content.type"),
        (Embed, {"share_id": "s", "content": {"text": "x", "metadata": [1]}}, "content.metadata"),
        (Embed, {"share_id": "s", "content": {"text": "x", "metadata": {"a": float("inf")}}}, "content.metadata"),
        (Embed, {"share_id": "s", "content": {"text": "x", "metadata": {"a": b"b"}}}, "content.metadata"),
        (Embed, {"share_id": "s", "content": {"text": "x", "metadata": {1: 1}}}, "content.metadata"),
        (Embed, {"share_id": "s", "content": {"text": "x"}, "options": {"chunk_strategy": "page"}}, "options.chunk_strategy"),
        (EmbedBatch, {"tasks": []}, "tasks"),
        (EmbedBatch, {"tasks": {"share_id": "s"}}, "tasks"),
        (EmbedBatch, {}, "tasks"),
        (EmbedBatch, {"tasks": [{"share_id": "s", "content": {"text": "x"}}, {"share_id": "s", "content": {"text": ""}}]},
         "tasks[1].content.text"),
        (EmbedBatch, {"tasks": ["x"]}, "tasks[0]"),
    ],
)  # fmt: skip
def test_an_invalid_payload_names_its_field_and_shows_no_value(kind: type, payload: object, field: str) -> None:
    """The error's field is the full path of the culprit."""
    with pytest.raises(InvalidPayload) as caught:
        from_mapping(kind, payload)
    assert field == caught.value.field
    assert str(caught.value).startswith(field)
    assert PRIVATE not in str(caught.value)


def test_a_camel_case_key_is_refused_with_the_name_that_is_meant() -> None:
    """Original mistake: maxLength was sent and ignored by the workers."""
    with pytest.raises(InvalidPayload, match="did you mean max_length"):
        from_mapping(Summarize, {"share_id": "s", "content": {"text": "x"}, "options": {"maxLength": 9}})


def test_deep_metadata_is_refused_before_a_parser_meets_it() -> None:
    """Nesting is bounded, without recursion."""
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(InvalidPayload, match="32 levels"):
        EmbedContent(text="x", metadata=deep)


def test_wide_metadata_is_refused() -> None:
    """A few megabytes of JSON may not become hundreds of megabytes of objects."""
    with pytest.raises(InvalidPayload, match=r"^content\.metadata must not hold more than 10000 values$"):
        EmbedContent(text="x", metadata={"a": [[]] * 10_000})
    EmbedContent(text="x", metadata={"a": [[]] * 9_999})


def test_the_tasks_of_a_batch_are_counted_before_they_are_read() -> None:
    """Likewise: a batch has a bound."""
    with pytest.raises(InvalidPayload, match=r"^tasks must hold 1 to 10000 tasks$"):
        from_mapping(EmbedBatch, {"tasks": ["not even a task"] * 10_001})


def test_records_made_directly_are_checked_too() -> None:
    """There is no way around the checks."""
    wrong: Any = "brutal"
    with pytest.raises(InvalidPayload, match=r"^options\.style must be one of brief, detailed, bullets$"):
        SummarizeOptions(style=wrong)
    with pytest.raises(InvalidPayload, match=r"^content must be a SummarizeContent, not dict$"):
        Summarize(share_id="s", content=wrong and {})  # type: ignore[arg-type]


def test_keywords_may_be_flat_or_nested() -> None:
    """Both forms make the same record."""
    flat = from_keywords(Summarize, {"share_id": "s", "text": "x", "style": "brief"})
    nested = from_keywords(
        Summarize, {"share_id": "s", "content": {"text": "x"}, "options": SummarizeOptions(style="brief")}
    )
    assert flat == nested


@pytest.mark.parametrize(
    ("kind", "keywords"),
    [
        (Summarize, payloads.SummarizeFields),
        (Transcribe, payloads.TranscribeFields),
        (Embed, payloads.EmbedFields),
        (EmbedBatch, payloads.EmbedBatchFields),
    ],
)
def test_the_keywords_that_type_checkers_know_are_those_that_there_are(kind: Any, keywords: type) -> None:
    """All fields of the record and of its parts; backend is a keyword of the call itself."""
    parts = [row.metadata["record"] for row in fields(kind) if "record" in row.metadata]
    names = {row.name for record in (kind, *parts) for row in fields(record)}
    assert names - {"backend"} == set(keywords.__annotations__)


def test_the_repr_of_a_task_shows_no_private_text() -> None:
    """Texts, titles, addresses and prompts stay out of logs and tracebacks."""
    task = Summarize(share_id="s", content=SummarizeContent(text=PRIVATE, title=PRIVATE, url=PRIVATE))
    assert PRIVATE not in repr(task)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_KEYS = st.sampled_from(
    ["share_id", "content", "options", "text", "media_url", "mediaUrl", "metadata", "tasks", "backend"]
)
_NEAR = st.recursive(
    _JSON, lambda inner: st.dictionaries(_KEYS, inner, max_size=4) | st.lists(inner, max_size=2), max_leaves=12
)


@given(kind=st.sampled_from([Summarize, Transcribe, Embed, EmbedBatch]), value=_NEAR)
def test_any_json_makes_a_sendable_task_or_names_a_field(kind: Callable[..., Payload], value: object) -> None:
    """Whatever a client posts: a record that JSON can carry, or InvalidPayload; never another exception."""
    try:
        payload = from_mapping(kind, value)  # type: ignore[type-var]
    except InvalidPayload as refused:
        named = refused.field
    else:
        named = json.dumps(wire_form(payload, api), allow_nan=False)
    assert named.strip()
