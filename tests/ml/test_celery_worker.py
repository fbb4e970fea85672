"""The proof of the wire format: a real Celery worker, bound to these queues, runs each kind of task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from warrener._settings.settings import Settings
from warrener.ml import MLProducer, MLSettings

pytestmark = [pytest.mark.anyio, pytest.mark.broker, pytest.mark.full]

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PRIVATE = "what people wrote is private"


@pytest.fixture
def worker(rabbitmq) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("celery_worker.py"))],
        env={**os.environ, "RABBITMQ_URL": rabbitmq.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield program
    program.terminate()
    program.communicate(timeout=30)


async def line_of(program: subprocess.Popen[str]) -> dict[str, object]:
    """Return what the worker reports next; it writes nothing but reports to stdout after its banner."""
    assert program.stdout is not None
    with anyio.fail_after(60):
        while True:
            line = await anyio.to_thread.run_sync(program.stdout.readline, abandon_on_cancel=True)
            assert line, "the worker ended"
            if line.startswith("{"):
                return json.loads(line)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_real_celery_worker_runs_each_kind_of_task(rabbitmq, worker, driver) -> None:
    """It sees id, root_id, correlation_id, kwargs, traceparent and no retries, from the right queue under the right name."""
    settings = MLSettings(broker=Settings.resolve(rabbitmq.url), driver=driver)
    embed = {"share_id": "s", "content": {"text": PRIVATE}}
    calls = [
        ("summarize", {"share_id": "s", "text": PRIVATE, "style": "bullets"}, "ml.summarize",
         "llm_service.tasks.summarize_content",
         {"share_id": "s", "content": {"text": PRIVATE}, "options": {"style": "bullets", "backend": "api"}}),
        ("summarize", {"share_id": "s", "text": "grüße 🎧", "backend": "local"}, "ml.summarize_local",
         "llm_service.tasks.summarize_content_local",
         {"share_id": "s", "content": {"text": "grüße 🎧"}, "options": {"backend": "local"}}),
        ("transcribe", {"share_id": "s", "media_url": "https://x/a.mp3"}, "ml.transcribe",
         "whisper.tasks.transcribe_api",
         {"share_id": "s", "content": {"mediaUrl": "https://x/a.mp3"}, "options": {"normalize": True, "backend": "api"}}),
        ("transcribe", {"share_id": "s", "media_url": "/a.mp3", "backend": "local"}, "ml.transcribe_local",
         "whisper.tasks.transcribe_local",
         {"share_id": "s", "content": {"mediaUrl": "/a.mp3"}, "options": {"normalize": True, "backend": "local"}}),
        ("embed", {"share_id": "s", "text": PRIVATE, "metadata": {"a": [1, None]}}, "ml.embed",
         "vector_service.tasks.generate_embeddings",
         {"share_id": "s", "content": {"text": PRIVATE, "type": "caption", "metadata": {"a": [1, None]}},
          "options": {"embedding_type": "content", "backend": "api"}}),
        ("embed_batch", {"tasks": [embed, embed]}, "ml.embed",
         "vector_service.tasks.generate_embeddings_batch",
         {"tasks": [{"share_id": "s", "content": {"text": PRIVATE, "type": "caption", "metadata": {}},
                     "options": {"embedding_type": "content", "backend": "api"}}] * 2}),
    ]  # fmt: skip
    async with MLProducer(settings) as ml:
        for method, arguments, queue, name, kwargs in calls:
            receipt = await getattr(ml, method)(**arguments, trace={"traceparent": PARENT})
            seen = await line_of(worker)
            print(json.dumps(seen))  # the worker's report, for people
            task_id = receipt.message_id
            # pamqp leaves an empty property out; to a worker both mean that nobody waits for a reply.
            assert seen.pop("reply_to") in ("", None)
            origin, kwargsrepr, traceparent = (seen.pop(key) for key in ("origin", "kwargsrepr", "traceparent"))
            assert {
                "name": name, "id": task_id, "root_id": task_id, "parent_id": None, "correlation_id": task_id,
                "retries": 0, "args": [], "kwargs": kwargs, "argsrepr": "()", "queue": queue,
                "redelivered": False,
            } == seen  # fmt: skip
            assert str(origin).startswith(f"{os.getpid()}@")
            assert PRIVATE not in str(kwargsrepr)
            assert PARENT.split("-")[1] == str(traceparent).split("-")[1]
