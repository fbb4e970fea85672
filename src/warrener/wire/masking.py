"""Text from the broker, with the password that we gave it taken out.

A broker may write the password into a text of its own (a close, a return, a blocked reason), on purpose or for debugging,
and such texts reach exceptions, logs and the status.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from warrener.errors import MASKED, printable
from warrener.records import Credentials

__all__ = ["Mask"]


class Mask:
    """Makes text from outside `printable`, with the password masked: raw, percent-encoded and in base64."""

    def __init__(self, credentials: Credentials) -> None:
        # Not one regular expression of all forms: for a token of 8 KB its compilation takes half a second.
        self._forms: list[str] = []
        self.learn(credentials)

    def learn(self, credentials: Credentials) -> None:
        """Mask this password too, from now on."""
        if credentials.password:
            self._forms = sorted({*self._forms, *_forms(credentials)}, key=len, reverse=True)

    def __call__(self, text: object) -> str:
        """Return the text as one safe line."""
        raw = text if isinstance(text, str) else repr(text)
        for form in self._forms:
            raw = raw.replace(form, MASKED)
        return printable(raw)


def _forms(credentials: Credentials) -> Iterator[str]:
    user, password = credentials.username, credentials.password
    yield password
    # As `repr` and JSON show it.
    yield repr(password)[1:-1]
    yield password.encode("unicode_escape").decode()
    try:
        secrets = [password.encode(), f"\0{user}\0{password}".encode(), f"{user}:{password}".encode()]
    except UnicodeEncodeError:
        return  # The session refuses such credentials.
    for quoted in (quote(password), quote(password, safe=""), quote_plus(password)):
        # The digits of an escape may be of either case.
        yield quoted
        yield re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), quoted)
    for secret in secrets:
        for encoded in (base64.b64encode(secret), base64.urlsafe_b64encode(secret)):
            yield encoded.decode().rstrip("=")
