"""`MLProducer`: records and keywords in, one confirmed message out, counted once."""

from __future__ import annotations

import json
import uuid

import anyio
import pytest

from warrener.errors import CircuitOpen, Nacked, Unconfirmed, Unroutable
from warrener.ml import Embed, EmbedContent, InvalidPayload, Summarize, SummarizeContent, SummarizeOptions

pytestmark = pytest.mark.anyio

TASK_ID = "6f2c9a3e-4a57-4b92-8f39-0d6f4c1e2b77"


def kwargs_of(message):
    return json.loads(message.body)[1]


async def test_a_task_is_one_message_and_its_receipt_names_the_task(ml, producer) -> None:
    """The message id is the Celery id, and the receipt's message_id is the task id."""
    receipt = await ml.summarize(share_id="s", text="x", task_id=TASK_ID, timeout=7.0)
    ((message, timeout),) = producer.published
    assert (TASK_ID, TASK_ID, TASK_ID, 7.0) == (receipt.message_id, message.message_id, message.headers["id"], timeout)


async def test_records_and_keywords_send_the_same(ml, producer) -> None:
    """Calls take attrs records or keywords."""
    record = Summarize(share_id="s", content=SummarizeContent(text="x"), options=SummarizeOptions(style="brief"))
    await ml.summarize(record, task_id=TASK_ID)
    await ml.summarize(share_id="s", text="x", style="brief", task_id=TASK_ID)
    await ml.summarize(share_id="s", content={"text": "x"}, options={"style": "brief"}, task_id=TASK_ID)
    first, *others = (message for message, _ in producer.published)
    assert [first, first] == others


async def test_both_mixed_is_a_type_error(ml) -> None:
    """One way or the other."""
    with pytest.raises(TypeError, match="takes no keywords; set them in the record: text"):
        await ml.embed(Embed(share_id="s", content=EmbedContent(text="x")), text="y")


@pytest.mark.parametrize(
    ("preferred", "in_options", "argument", "expected"),
    [
        ("api", None, None, "api"),
        ("local", None, None, "local"),
        ("local", "api", None, "api"),
        ("api", "local", None, "local"),
        ("local", "local", "api", "api"),
    ],
)
async def test_the_backend_is_the_argument_else_the_options_else_the_preference(
    ml_with, producer, preferred, in_options, argument, expected
) -> None:
    """Original mistake: PREFERRED_LLM_BACKEND dead. Queue, task and options.backend agree."""
    ml = ml_with(preferred_llm_backend=preferred)
    await ml.summarize(share_id="s", text="x", options={"backend": in_options}, backend=argument)
    ((message, _),) = producer.published
    suffix = "" if expected == "api" else "_local"
    assert (f"ml.summarize{suffix}", f"llm_service.tasks.summarize_content{suffix}", expected) == (
        message.routing_key, message.headers["task"], kwargs_of(message)["options"]["backend"],
    )  # fmt: skip


async def test_each_task_of_a_batch_keeps_its_own_backend(ml, producer) -> None:
    """Options of a batch's tasks are complete, each with a backend."""
    await ml.embed_batch(
        tasks=[
            {"share_id": "a", "content": {"text": "x"}},
            Embed(share_id="b", content=EmbedContent(text="y")),
            {"share_id": "c", "content": {"text": "z"}, "options": {"backend": "local"}},
        ]
    )
    ((message, _),) = producer.published
    assert ["api", "api", "local"] == [task["options"]["backend"] for task in kwargs_of(message)["tasks"]]
    assert ("ml.embed", "vector_service.tasks.generate_embeddings_batch") == (
        message.routing_key,
        message.headers["task"],
    )


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"share_id": "s"}, "content.media_url"),
        ({"share_id": "s", "media_url": "gopher://x/"}, "content.media_url"),
        ({"share_id": "s", "media_url": "/a.mp3", "backend": "gpu"}, "backend"),
        ({"share_id": "s", "media_url": "/a.mp3", "task_id": "7"}, "task_id"),
        ({"share_id": "s", "mediaURL": "/a.mp3"}, "mediaURL"),
    ],
)
async def test_nothing_is_sent_when_anything_is_invalid(ml, producer, arguments, field) -> None:
    """Validated before anything is sent; the error names the field."""
    with pytest.raises(InvalidPayload) as caught:
        await ml.transcribe(**arguments)
    assert (field, []) == (caught.value.field, producer.published)


async def test_two_tasks_have_different_random_ids(ml) -> None:
    """Ids are UUIDs that nobody can guess from one another."""
    first = await ml.embed(share_id="s", text="x")
    second = await ml.embed(share_id="s", text="x")
    assert first.message_id != second.message_id
    assert 4 == uuid.UUID(first.message_id).version


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Unroutable(TASK_ID, "NO_ROUTE"), "failure", "unroutable"),
        (Nacked(TASK_ID, "nack"), "failure", "nacked"),
        (Unconfirmed(TASK_ID, "deadline"), "unconfirmed", "unconfirmed"),
        (CircuitOpen(TASK_ID, "open", retry_after=1.0), "circuit_breaker_open", "circuit_open"),
    ],
)
async def test_a_failed_call_is_counted_once(ml, producer, error, status, reason) -> None:
    """Original mistakes: failures double-counted; unroutable counted as success; classified by matching error text."""
    producer.outcome = error
    with pytest.raises(type(error)):
        await ml.summarize(share_id="s", text="x")
    assert {("summarize_llm", status): 1} == {key: count for key, count in ml.counters.sent.items() if count}
    assert {reason: 1} == {key: count for key, count in ml.counters.failures.items() if count}


async def test_a_refused_payload_is_no_task_and_counted_nowhere(ml) -> None:
    """A client's mistakes must not ring the alarm that is there for the broker."""
    for wrong in ({"text": ""}, {"text": "x", "backend": "gpu"}, {"text": "x", "task_id": "7"}):
        with pytest.raises(InvalidPayload):
            await ml.summarize(share_id="s", **wrong)
    assert not any(ml.counters.sent.values())
    assert not any(ml.counters.failures.values())


async def test_a_cancelled_call_is_neither_success_nor_failure(ml, producer) -> None:
    """Cancellation is the caller's choice, not the broker's fault."""
    producer.hold = anyio.Event()
    with anyio.move_on_after(0):
        await ml.summarize(share_id="s", text="x")
    assert {("summarize_llm", "cancelled"): 1} == {key: count for key, count in ml.counters.sent.items() if count}
    assert not any(ml.counters.failures.values())


async def test_attempts_beyond_the_first_are_counted_as_retries(ml, producer) -> None:
    """A receipt says how often the message went over the wire."""
    producer.attempts = 3
    await ml.embed(share_id="s", text="x")
    assert 2 == ml.counters.retries["embed_vectors"]


async def test_as_a_block_and_as_a_component(ml_with) -> None:
    """`async with` and `start(ml.run)` both work, on every backend."""
    async with ml_with() as ml:
        await ml.embed(share_id="s", text="x")
    component = ml_with()
    async with anyio.create_task_group() as tasks:
        await tasks.start(component.run)
        await component.embed(share_id="s", text="x")
        await component.aclose()
