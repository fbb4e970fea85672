"""The service's HTTP side as one Starlette app: tasks, health, metrics, and a page to look at.

It runs under `warrener serve`, and mounted in any ASGI program, on Trio or asyncio. A client may rely on this:

* 202 means that the broker has confirmed the task. Every other answer says whether a queue may hold the task all the same.
* Each request ends within ``request_timeout``, whatever the broker does. One body has at most ``max_body`` bytes; all
  bodies that are held have together at most ``max_held``.
* The Content-Type must be application/json. A web page of another origin can send plain text without a CORS
  preflight request, but no JSON.
"""

from __future__ import annotations

from collections.abc import Mapping

from warrener.http import health_routes, in_loop, metrics_endpoint
from warrener.metrics import ProducerCollector
from warrener.ml.history import History
from warrener.ml.metrics import MLCollector
from warrener.ml.payloads import Embed, EmbedBatch, Payload, Summarize, Transcribe
from warrener.ml.producer import MLProducer
from warrener.ml.status_page import StatusPage
from warrener.ml.task_endpoint import TaskEndpoint

try:
    from starlette.applications import Starlette
    from starlette.routing import Route
except ModuleNotFoundError:
    raise ImportError("warrener.ml.app needs starlette: pip install 'warrener[ml]'") from None

__all__ = ["HEALTH_PATH", "TASKS", "ml_app"]

HEALTH_PATH = "/v1/ml/analytics/health"
EVENTS_PATH = "/v1/ml/analytics/events"
#: By the last part of the path.
TASKS: Mapping[str, type[Payload]] = {
    "summarize": Summarize,
    "transcribe": Transcribe,
    "embed": Embed,
    "embed-batch": EmbedBatch,
}


def ml_app(ml: MLProducer, *, history: History | None = None) -> Starlette:
    """Return the app. `history` is the one that the service keeps; None makes one that advances while the page is watched.

    ``await app.state.wait_empty()`` returns when no task is being taken in: every accepted request has its answer.
    """
    tasks = TaskEndpoint(ml)
    page = StatusPage(history or History(ml), ml.settings.max_watchers)
    app = Starlette(
        routes=[
            *health_routes(ml, HEALTH_PATH),
            Route(
                "/metrics",
                in_loop(metrics_endpoint(MLCollector(ml), ProducerCollector(ml.producer))),
                methods=["GET"],
            ),
            *(Route(f"/v1/ml/tasks/{name}", tasks.taking(kind), methods=["POST"]) for name, kind in TASKS.items()),
            Route("/", in_loop(page.html), methods=["GET"]),
            Route(EVENTS_PATH, in_loop(page.events), methods=["GET"]),
        ]
    )
    app.state.wait_empty = tasks.wait_empty
    return app
