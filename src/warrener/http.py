"""Health, readiness and metrics over HTTP, as a Starlette app to be mounted in yours.

    app = Starlette(routes=[Mount("/rabbitmq", health_app(producer))])

* ``/health``: the state of the producer, in the shape that the dashboards of its predecessor read.
* ``/livez``: 200 while the process runs. An absent broker never makes it fail: a process manager would restart healthy
  programs, all at once.
* ``/readyz``: 200 while a message can be taken, by the outbox or else by the broker; otherwise 503 and one word that says why.
* ``/metrics``: Prometheus, where prometheus_client is installed.

A request to them changes nothing, dials nothing and costs the same whatever the broker does. No answer holds a host, a
user, a URL or a text of the broker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from warrener.records import ConnectionState, Status

try:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError:
    raise ImportError("warrener.http needs starlette: pip install 'warrener[http]'", name="starlette") from None

if TYPE_CHECKING:
    from warrener.metrics import Measured

__all__ = [
    "HasStatus",
    "condition",
    "health",
    "health_app",
    "health_endpoint",
    "health_routes",
    "in_loop",
    "metrics_endpoint",
]

_FRESH = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class HasStatus(Protocol):
    """A `Producer`, or an `MLProducer`."""

    def status(self) -> Status:
        """The producer at this instant."""
        ...


def health(status: Status) -> dict[str, object]:
    """Return the body of the health endpoint: exactly these keys."""
    return {
        "healthy": status.healthy,
        "rabbitmq": {
            "connectionState": status.connection_state.value,
            "reconnectAttempts": status.reconnect_attempts,
            "consecutiveFailures": status.consecutive_failures,
            "circuitBreakerOpen": status.circuit_breaker == "open",
        },
    }


def condition(status: Status) -> str:
    """Return the condition of a producer in one or two words of a closed set; "ready" means that publishes can succeed."""
    match status.connection_state:
        case ConnectionState.CONNECTED:
            if status.blocked:
                return "blocked"
            if status.circuit_breaker == "open":
                return "breaker open"
            if any(link.connection_state is not ConnectionState.CONNECTED for link in status.links):
                return "links down"
            return "ready" if status.healthy else "confirms overdue"
        case ConnectionState.DISCONNECTED if status.retry_in is None and status.last_fault is not None:
            return "gave up"
        case _:
            word: str = status.connection_state.value
            return word.lower()


def readiness(status: Status) -> str:
    """Return "ready" while a message can be taken: by the outbox, where there is one, otherwise by the broker."""
    if status.outbox is None or status.connection_state in (ConnectionState.CLOSING, ConnectionState.CLOSED):
        found = condition(status)
        return "ready" if found == "links down" else found
    if status.outbox.last_error is not None:
        return "outbox unusable"
    return "outbox full" if status.outbox.full else "ready"


def health_endpoint(producer: HasStatus) -> Callable[[Request], Response]:
    """Return the handler of the health endpoint: 200 when healthy, 503 when not.

    The header ``Producer-Condition`` names the condition, because the shape of the body is fixed. So "gave up", which only
    `reconnect()` or a restart ends, differs from an outage that ends by itself.
    """

    def endpoint(_request: Request) -> Response:
        status = producer.status()
        headers = _FRESH | {"Producer-Condition": condition(status)}
        return JSONResponse(health(status), 200 if status.healthy else 503, headers)

    return endpoint


def metrics_endpoint(*collectors: Any) -> Callable[[Request], Response]:
    """Return the handler that answers a Prometheus scrape with the metrics of the collectors."""
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder
    except ModuleNotFoundError:
        raise ImportError("metrics need prometheus_client: pip install 'warrener[metrics]'") from None
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)

    def endpoint(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers=_FRESH | {"Content-Type": content_type})

    return endpoint


def health_routes(producer: HasStatus, health_path: str = "/health") -> list[Route]:
    """Return the routes of health, liveness and readiness."""

    def livez(_request: Request) -> Response:
        return PlainTextResponse("alive\n", headers=_FRESH)

    def readyz(_request: Request) -> Response:
        word = readiness(producer.status())
        return PlainTextResponse(f"{word}\n", 200 if word == "ready" else 503, _FRESH)

    return [
        Route(health_path, in_loop(health_endpoint(producer)), methods=["GET"]),
        Route("/livez", in_loop(livez), methods=["GET"]),
        Route("/readyz", in_loop(readyz), methods=["GET"]),
    ]


def health_app(producer: Measured) -> Starlette:
    """Return an app with ``/health``, ``/livez``, ``/readyz`` and, where prometheus_client is installed, ``/metrics``."""
    routes = health_routes(producer)
    try:
        from warrener.metrics import ProducerCollector
    except ImportError:
        return Starlette(routes=routes)
    scrape = in_loop(metrics_endpoint(ProducerCollector(producer)))
    return Starlette(routes=[*routes, Route("/metrics", scrape, methods=["GET"])])


def in_loop(endpoint: Callable[[Request], Response]) -> Callable[[Request], Any]:
    """Return a coroutine function that calls the plain `endpoint`: Starlette would call that one in a thread."""

    async def run(request: Request) -> Response:
        return endpoint(request)

    return run
