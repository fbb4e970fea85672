"""What the program is asked for while a producer runs: the credentials before each dial, the endpoints before each pass.

Both questions are async callables of the program. An exception of a callable, an answer that comes too late, and an
answer that makes no sense become one `LinkDown` with a `LOOKUP` fault. The text of an exception is not shown, because
it can hold a secret.

Credentials with an end are renewed on the live link. When `RENEW_AT` of their time is over, the program is asked again, and
the broker gets the new secret by connection.update-secret. Another user name needs another link: the producer hands over to
the same endpoint. If the program does not answer, it is asked again until the credentials expire; then the link ends.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import anyio

from warrener._settings.endpoints import check_credentials
from warrener.drivers.base import Link, LinkDown
from warrener.errors import Fault, FaultKind, SettingsError
from warrener.records import Credentials

__all__ = ["RENEW_AT", "Login", "Logins", "asked"]

T = TypeVar("T")

#: The part of the time of the credentials after which new ones are asked for.
RENEW_AT = 0.75
#: The shortest time in seconds between two questions for new credentials on one link.
_GAP = 1.0


def _failed(text: str) -> LinkDown:
    return LinkDown(Fault(FaultKind.LOOKUP, text))


async def asked(name: str, source: Callable[[], Awaitable[T]], timeout: float) -> T:
    """Return the answer of the program's callable; raises `LinkDown`."""
    with anyio.move_on_after(timeout):
        try:
            return await source()
        except SettingsError as error:
            raise _failed(str(error)) from None
        except Exception as error:  # noqa: BLE001 - the callable is the program's own
            reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            raise _failed(
                f"{name}() raised {type(error).__name__}{reason}; its text is not shown, because it can hold a secret"
            ) from None
    raise _failed(f"{name}() did not answer within {timeout:g} s")


class Login:
    """The credentials of one link, and when they expire."""

    def __init__(self, credentials: Credentials, asked_at: float) -> None:
        self.credentials = credentials
        lasts = credentials.expires_in
        self.expires_at = math.inf if lasts is None else asked_at + lasts
        #: The instant at which new credentials are asked for.
        self.renew_at = math.inf if lasts is None else asked_at + max(_GAP, RENEW_AT * lasts)


class Logins:
    """Asks for credentials, and renews them on a live link."""

    def __init__(
        self,
        source: Callable[[], Awaitable[Credentials]],
        timeout: float,
        clock: Callable[[], float],
        *,
        failed: Callable[[Fault], None],
        replace_link: Callable[[], None],
    ) -> None:
        self._source = source
        self._timeout = timeout
        self._clock = clock
        #: Called with the fault of a renewal that failed and is tried again.
        self._failed = failed
        #: Replaces the link by a new one to the same endpoint.
        self._replace_link = replace_link

    async def ask(self, timeout: float | None = None) -> Login:
        """Return fresh credentials; raises `LinkDown`."""
        began = self._clock()
        answer: object = await asked("credentials", self._source, self._timeout if timeout is None else timeout)
        if not isinstance(answer, Credentials):
            raise _failed(f"credentials() must return Credentials, not {type(answer).__name__}")
        _check(answer)
        return Login(answer, began)

    async def keep(self, link: Link, login: Login) -> NoReturn:
        """Renew the login on the link until the link ends. Raises `LinkDown` if that is impossible."""
        while login.renew_at < math.inf:
            await anyio.sleep(max(0.0, login.renew_at - self._clock()))
            fresh = await self._renewed(login)
            if fresh.credentials.username != login.credentials.username:
                self._replace_link()
                break
            await link.update_secret(fresh.credentials.password)
            login = fresh
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def _renewed(self, login: Login) -> Login:
        while True:
            try:
                return await self.ask(min(self._timeout, max(_GAP, login.expires_at - self._clock())))
            except LinkDown as down:
                left = login.expires_at - self._clock()
                if left <= 0:
                    raise _failed(f"the credentials have expired and were not renewed: {down.fault.text}") from None
                self._failed(down.fault)
                await anyio.sleep(min(left, max(_GAP, left / 4)))


def _check(credentials: Credentials) -> None:
    """Refuse credentials that cannot be used."""
    for part in ("username", "password"):
        if not isinstance(value := getattr(credentials, part), str):
            raise _failed(f"credentials() returned Credentials whose {part} is {type(value).__name__}, not str")
    try:
        check_credentials(credentials, "the answer of credentials()")
    except SettingsError as error:
        raise _failed(str(error)) from None
    lasts: object = credentials.expires_in
    if lasts is not None and not (isinstance(lasts, int | float) and 0 < lasts < math.inf):
        raise _failed("credentials() returned Credentials whose expires_in is not a number of seconds above 0")
