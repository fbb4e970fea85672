"""A request's body as JSON, and the memory that it takes once it is parsed.

A body of a few megabytes can become hundreds: ``[[],[],…`` takes three bytes for each list, and a list takes eighty. So
the parsed size is estimated from the body, by counting, before the body is parsed.
"""

from __future__ import annotations

import json
from typing import NoReturn

from warrener.ml.payloads import InvalidPayload

__all__ = ["decoded", "parsed_size"]

#: Bytes of CPython's objects, rounded up: a dict, a list, a member of a dict with its key, an element with its value.
DICT, LIST, MEMBER, ELEMENT = 240, 88, 96, 64
#: Characters of a number; the largest floating-point number has 309 digits.
DIGITS = 400


def parsed_size(body: bytes | bytearray) -> int:
    """Return how many bytes the body takes once it is parsed; too much rather than too little."""
    # One character beyond Latin-1 makes two or four bytes of each character of its text.
    wide = 1 if body.isascii() and b"\\u" not in body else 4
    return (
        len(body) * wide
        + body.count(b"{") * DICT
        + body.count(b"[") * LIST
        + body.count(b":") * MEMBER
        + body.count(b",") * ELEMENT
    )


def decoded(body: bytes | bytearray) -> object:
    """Return the value that the body stands for; raises `InvalidPayload`."""
    try:
        return json.loads(body, parse_constant=_no_constant, parse_int=_integer, parse_float=_number)
    except InvalidPayload:
        raise
    except (ValueError, RecursionError):
        raise InvalidPayload("the body", "is not valid JSON") from None


def _integer(text: str) -> int:
    # json's C parser calls this Python function, so other threads can run in between; the parser alone lets none run.
    # And the number of digits is limited, because the cost of converting them grows with its square.
    if len(text) > DIGITS:
        raise InvalidPayload("the body", f"must not hold a number of more than {DIGITS} characters")
    return int(text)


def _number(text: str) -> float:
    if len(text) > DIGITS:
        raise InvalidPayload("the body", f"must not hold a number of more than {DIGITS} characters")
    return float(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
