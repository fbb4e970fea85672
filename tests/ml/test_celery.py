"""Celery messages, field by field, and the topology they travel through."""

from __future__ import annotations

import json
import uuid

import pytest

from warrener.ml import celery
from warrener.ml.payloads import Embed, EmbedBatch, InvalidPayload, Summarize, Transcribe
from warrener.ml.topology import QUEUES, topology
from warrener.topology import Binding, Exchange, Queue

TASK_ID = "6f2c9a3e-4a57-4b92-8f39-0d6f4c1e2b77"
PRIVATE = "my private thoughts"


def message(kwargs: dict[str, object], **options: object):
    body = celery.task_body(celery.ROUTES[Summarize, "api"], kwargs)
    return celery.task_message(body, task_id=TASK_ID, exchange="bookmarkai.ml", origin="7@host", **options)


def test_the_body_is_args_kwargs_and_no_workflow() -> None:
    """Protocol 2: [args, kwargs, embed], args empty."""
    body = message({"share_id": "s", "content": {"text": "grüße"}}).body
    assert [
        [],
        {"share_id": "s", "content": {"text": "grüße"}},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ] == json.loads(body)


def test_the_headers_are_those_of_protocol_2() -> None:
    """Every header of the protocol, and no other."""
    assert {
        "lang": "py",
        "task": "llm_service.tasks.summarize_content",
        "id": TASK_ID,
        "root_id": TASK_ID,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": "{'share_id': …, 'content': …}",
        "origin": "7@host",
        "ignore_result": False,
        "shadow": None,
    } == message({"share_id": "s", "content": {"text": PRIVATE}}).headers


def test_the_properties_identify_the_task_and_make_it_durable() -> None:
    """correlation_id = message_id = id; persistent; returned rather than lost when no queue takes it."""
    made = message({})
    assert (
        TASK_ID, TASK_ID, "", "application/json", "utf-8", True, True, "bookmarkai.ml", "ml.summarize",
    ) == (
        made.message_id, made.correlation_id, made.reply_to, made.content_type, made.content_encoding,
        made.persistent, made.mandatory, made.exchange, made.routing_key,
    )  # fmt: skip


def test_a_trace_is_at_the_top_level_of_the_headers() -> None:
    """traceparent and tracestate are headers of their own, where a Celery worker looks for them."""
    made = message({}, trace={"traceparent": "00-a-b-01", "tracestate": "x=1"})
    assert ("00-a-b-01", "x=1") == (made.headers["traceparent"], made.headers["tracestate"])


def test_kwargsrepr_holds_keys_and_counts_only() -> None:
    """Original mistake: private text in logs. Monitors show kwargsrepr, so it has none."""
    made = message({"tasks": [{"content": {"text": PRIVATE}}] * 3})
    assert "{'tasks': [3 tasks]}" == made.headers["kwargsrepr"]


@pytest.mark.parametrize(
    ("kind", "backend", "key", "task"),
    [
        (Summarize, "api", "ml.summarize", "llm_service.tasks.summarize_content"),
        (Summarize, "local", "ml.summarize_local", "llm_service.tasks.summarize_content_local"),
        (Transcribe, "api", "ml.transcribe", "whisper.tasks.transcribe_api"),
        (Transcribe, "local", "ml.transcribe_local", "whisper.tasks.transcribe_local"),
        (Embed, "api", "ml.embed", "vector_service.tasks.generate_embeddings"),
        (Embed, "local", "ml.embed", "vector_service.tasks.generate_embeddings"),
        (EmbedBatch, "api", "ml.embed", "vector_service.tasks.generate_embeddings_batch"),
        (EmbedBatch, "local", "ml.embed", "vector_service.tasks.generate_embeddings_batch"),
    ],
)
def test_each_call_and_backend_has_its_queue_and_its_task(kind, backend, key, task) -> None:
    """The routing table."""
    assert celery.Route(key, task) == celery.ROUTES[kind, backend]


def test_a_task_id_is_a_uuid_given_or_new() -> None:
    """A UUID is taken as it is written; other spellings, which would give two keys one id, are refused by name."""
    assert TASK_ID == celery.task_id_of(TASK_ID)
    assert TASK_ID.upper() == celery.task_id_of(TASK_ID.upper()), "as it is written"
    assert TASK_ID == celery.task_id_of(uuid.UUID(TASK_ID))
    assert celery.task_id_of(None) != celery.task_id_of(None)
    assert 4 == uuid.UUID(celery.task_id_of(None)).version
    for wrong in ("", "7", "x" * 36, f"+{TASK_ID[1:]}", f"{{{TASK_ID}}}", TASK_ID.replace("-", ""), f"0x{TASK_ID[2:]}"):
        with pytest.raises(InvalidPayload, match=r"^task_id must be a UUID"):
            celery.task_id_of(wrong)


def test_the_topology_is_five_quorum_queues_bound_by_their_names() -> None:
    """No dead-letter exchange unless asked for: arguments of an existing queue cannot change."""
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 5}
    assert (
        Exchange("bookmarkai.ml", "topic"),
        *(Queue(name, arguments=arguments) for name in QUEUES),
        *(Binding(source="bookmarkai.ml", destination=name, routing_key=name) for name in QUEUES),
    ) == topology()
    assert ("ml.summarize", "ml.summarize_local", "ml.transcribe", "ml.transcribe_local", "ml.embed") == QUEUES


def test_poison_messages_are_kept_when_a_dead_letter_exchange_is_asked_for() -> None:
    """Every queue names the exchange, and the exchange has a queue that takes everything."""
    declared = topology("shop", dead_letter=True)
    queues = {queue.name: queue.arguments for queue in declared if isinstance(queue, Queue)}
    assert {"shop.dlx"} == {queues[name]["x-dead-letter-exchange"] for name in QUEUES}
    assert Exchange("shop.dlx", "topic") in declared
    assert Binding(source="shop.dlx", destination="shop.dlx", routing_key="#") in declared
    assert {"x-queue-type": "quorum"} == queues["shop.dlx"]
