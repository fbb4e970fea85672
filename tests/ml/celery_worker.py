"""A real Celery worker, run as a program by test_celery_worker.py: it prints what each task saw as one line of JSON.

Its queues are declared with the arguments that the producer declares, so a mismatch would stop it.
"""

from __future__ import annotations

import json
import os
import sys

from celery import Celery
from kombu import Exchange, Queue

QUEUES = ("ml.summarize", "ml.summarize_local", "ml.transcribe", "ml.transcribe_local", "ml.embed")
TASKS = (
    "llm_service.tasks.summarize_content",
    "llm_service.tasks.summarize_content_local",
    "whisper.tasks.transcribe_api",
    "whisper.tasks.transcribe_local",
    "vector_service.tasks.generate_embeddings",
    "vector_service.tasks.generate_embeddings_batch",
)

app = Celery("ml", broker=os.environ["RABBITMQ_URL"].replace("amqp://", "pyamqp://"))
app.conf.update(
    task_queues=[
        Queue(
            name,
            Exchange("bookmarkai.ml", "topic"),
            routing_key=name,
            queue_arguments={"x-queue-type": "quorum", "x-delivery-limit": 5},
        )
        for name in QUEUES
    ],
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_redirect_stdouts=False,
)


def report(task, **kwargs) -> None:
    request = task.request
    seen = {
        "name": task.name,
        "id": request.id,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "correlation_id": request.correlation_id,
        "reply_to": request.reply_to,
        "origin": request.origin,
        "retries": request.retries,
        "args": list(request.args or ()),
        "kwargs": kwargs,
        "argsrepr": request.argsrepr,
        "kwargsrepr": request.kwargsrepr,
        "traceparent": getattr(request, "traceparent", None),
        "queue": request.delivery_info["routing_key"],
        "redelivered": request.delivery_info["redelivered"],
    }
    print(json.dumps(seen), flush=True)


for task_name in TASKS:
    app.task(report, bind=True, name=task_name)

if __name__ == "__main__":
    arguments = [
        "worker",
        "--pool=solo",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--loglevel=ERROR",
    ]
    sys.exit(app.worker_main(arguments))
