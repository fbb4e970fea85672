"""The ML producer inside somebody else's ASGI program, on asyncio: FastAPI looks the same, it is a Starlette app.

RABBITMQ_URL=amqp://user:password@localhost/ uvicorn --app-dir examples mounted_app:app     # or hypercorn
curl http://127.0.0.1:8000/ml/v1/ml/analytics/health
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from warrener.ml import MLProducer, MLSettings
from warrener.ml.app import ml_app


def make_app(settings: MLSettings) -> Starlette:
    """Return a gateway that has its own routes and, under /ml, the producer's."""
    ml = MLProducer(settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with ml:  # runs while the program runs, drains when it ends
            yield

    async def share(request: Request) -> JSONResponse:
        receipt = await ml.summarize(share_id=request.path_params["share_id"], text="the text of the share")
        return JSONResponse({"task": receipt.message_id}, 202)

    routes = [Route("/shares/{share_id}", share, methods=["POST"]), Mount("/ml", ml_app(ml))]
    return Starlette(routes=routes, lifespan=lifespan)


def __getattr__(name: str) -> Starlette:
    """Make `app` when a server asks for it, so that the module can be imported without a broker in the environment."""
    if name == "app":
        return make_app(MLSettings.load())
    raise AttributeError(name)
