"""Who may use the service: the guard before its app checks the Host, the Origin and the bearer token of each request.

* A web page of another site can make its own name resolve to this machine (DNS rebinding). Its requests carry that name as
  Host, so the guard admits a list of names. An IP address is always admitted: in a DNS rebinding attack the
  browser sends a name.
* A web page of another origin can send requests. A request that changes something and has an Origin must have the origin
  of the service, or one of the list.
* Where a token is set, publishing and metrics ask for it.
"""

from __future__ import annotations

import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from warrener.ml.answers import answer
from warrener.ml.server_settings import ServerSettings

__all__ = ["Guard"]

_LOOPBACK = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """An ASGI app that refuses each request that is not admitted, and passes the others to `app`.

    `any_host`: over a Unix socket no browser comes, and the Host means nothing.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, *, token: str | None, any_host: bool = False) -> None:
        self._app = app
        self._hosts = None if any_host else _LOOPBACK | set(settings.allowed_hosts)
        self._origins = frozenset(settings.allowed_origins)
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        app: ASGIApp = self._app
        if scope["type"] == "http":
            app = self._refusal(scope, Headers(scope=scope)) or app
        await app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        if scope["http_version"] not in ("1.0", "1.1"):
            return answer(505, "the service speaks HTTP/1.1", None)
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            return answer(400, "a request must have one Host", None)
        host = hosts[0].lower() if hosts else ""
        if not self._is_host(host):
            return answer(
                421, "the service answers no requests for this host name; see the setting allowed_hosts", None
            )
        if scope["method"] not in _SAFE and not self._is_origin(scope, host, headers.getlist("origin")):
            return answer(403, "a page of this origin may not send requests; see the setting allowed_origins", None)
        if self._token is not None and self._is_guarded(scope) and not self._is_token(headers.getlist("authorization")):
            refused = answer(401, "this needs the bearer token of the service", None)
            refused.headers["WWW-Authenticate"] = "Bearer"
            return refused
        return None

    def _is_host(self, host: str) -> bool:
        if self._hosts is None:
            return True
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.rstrip(".") in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_origin(self, scope: Scope, host: str, origins: list[str]) -> bool:
        own = f"{scope['scheme']}://{host}"
        return all(origin.lower() == own or origin.lower() in self._origins for origin in origins)

    @staticmethod
    def _is_guarded(scope: Scope) -> bool:
        return scope["method"] not in _SAFE or scope["path"] == "/metrics"

    def _is_token(self, given: list[str]) -> bool:
        assert self._token is not None
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)
