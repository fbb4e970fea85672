"""The rule of one setting: which values it takes, and how text is parsed. The same rule serves every source.

Code, the URL's query, the environment and the settings file all end here, so a value that one source refuses is refused
by all of them, in the same words. A row of a settings record is an attrs field made by `row`, which carries its rule.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import attrs
from attrs import field, frozen

from warrener.errors import SettingsError, printable

__all__ = [
    "FLAG",
    "FLAGS",
    "NAME",
    "Rule",
    "count",
    "did_you_mean",
    "is_integer",
    "is_number",
    "number",
    "one_of",
    "row",
    "rules_of",
    "seconds",
]


def is_number(value: object) -> bool:
    """Whether the value is an int or a float, and neither a bool nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def is_integer(value: object) -> bool:
    """Whether the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


@frozen
class Rule:
    """What a setting may be."""

    #: Ends the sentence "<setting> must be …".
    allowed: str
    #: From text to a value; raises ValueError.
    parse: Callable[[str], object]
    holds: Callable[[Any], bool]

    def check(self, name: str, value: object, source: str = "") -> None:
        """Raise `SettingsError` if the value is not allowed."""
        if not self.holds(value):
            self.refuse(name, value, source)

    def read(self, name: str, value: object, source: str = "") -> Any:
        """Return the checked value: text is parsed, any other type (from a file) is taken as it is."""
        read = value
        if isinstance(value, str):
            try:
                read = self.parse(value)
            except ValueError:
                self.refuse(name, value, source)
        self.check(name, read, source)
        return read

    def refuse(self, name: str, value: object, source: str = "") -> NoReturn:
        """Raise the `SettingsError` that names the setting, the value, the source and the allowed values."""
        origin = f" (from {source})" if source else ""
        raise SettingsError(f"{name} must be {self.allowed}, not {printable(repr(value), 60)}{origin}") from None


def seconds(*, zero: bool = False, forever: bool = True) -> Rule:
    """Make the rule of a duration: more than 0 (with `zero`: 0 or more), and finite unless `forever`."""
    low = "0 or more" if zero else "more than 0"
    return Rule(
        f"a number of seconds, {low}" + ("" if forever else ", and finite"),
        float,
        lambda value: is_number(value) and (value >= 0 if zero else value > 0) and (forever or math.isfinite(value)),
    )


def number(low: float, high: float, unit: str) -> Rule:
    """Make the rule of a number of `unit`, from `low` to `high`."""
    return Rule(
        f"a number of {unit}, from {low:g} to {high:g}", float, lambda value: is_number(value) and low <= value <= high
    )


def count(low: int, high: int | None = None, unit: str = "") -> Rule:
    """Make the rule of a whole number, at least `low` and at most `high`."""
    return Rule(
        "a whole number" + (f" of {unit}" if unit else "") + f", at least {low}"
        + (f" and at most {high}" if high is not None else ""),
        int,
        lambda value: is_integer(value) and value >= low and (high is None or value <= high),
    )  # fmt: skip


def one_of(*choices: str) -> Rule:
    """Make the rule of a choice between words."""
    return Rule(" or ".join(repr(choice) for choice in choices), str, lambda value: value in choices)


FLAGS: Mapping[str, bool] = {
    "true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False,
}  # fmt: skip


def _parse_flag(text: str) -> bool:
    try:
        return FLAGS[text.lower()]
    except KeyError:
        raise ValueError from None


FLAG = Rule("true or false", _parse_flag, lambda value: isinstance(value, bool))

NAME = Rule(
    "1 to 255 bytes of printable text",
    str,
    lambda value: (
        isinstance(value, str) and 0 < len(value.encode(errors="replace")) <= 255 and printable(value) == value
    ),
)


def _as_float(value: float) -> float:
    # The validator runs after this converter; a value of another type reaches it unchanged and is refused there.
    return float(value) if is_integer(value) else value


def row(rule: Rule, default: object, *, optional: bool = False, alias: str | None = None, variable: str = "") -> Any:
    """Make an attrs field that obeys `rule`. With `optional`, None is allowed in code and means "not given".

    `variable` is the name of its environment variable; "" stands for the prefix followed by the row's name.
    """

    def validate(settings: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (optional and value is None):
            rule.check(attribute.alias or attribute.name, value)

    return field(
        default=default,
        validator=validate,
        converter=_as_float if rule.parse is float else None,
        alias=alias,
        metadata={Rule: rule, "variable": variable},
    )


def rules_of(record: type[Any]) -> dict[str, Rule]:
    """Return the rule of each row of the record that text can set."""
    return {
        attribute.alias or attribute.name: attribute.metadata[Rule]
        for attribute in attrs.fields(record)
        if Rule in attribute.metadata
    }


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the known name most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
