from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pamqp.decode
import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.header import ContentHeader

from warrener.wire.codec import (
    MAX_DEPTH,
    MAX_ENTRIES,
    Malformed,
    Unsendable,
    method_payload,
    read_content_header,
    read_method,
    read_table,
    short_string,
    table,
    timestamp,
)
from warrener.wire.framing import frame

KEYS = st.text(max_size=12)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    st.builds(
        lambda mantissa, places: Decimal(mantissa).scaleb(-places), st.integers(-(2**31), 2**31 - 1), st.integers(0, 20)
    ),
)
TABLES = st.dictionaries(
    KEYS,
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8),
    max_size=5,
)  # fmt: skip


def plain(value: Any) -> Any:
    """A value as it comes back from either reader: pamqp gives bytes as bytearray."""
    match value:
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case bytearray():
            return bytes(value)
        case _:
            return value


@given(TABLES)
def test_tables_of_all_types(fields: dict[str, Any]) -> None:
    """What is written is read back equal, by this package and by pamqp (which takes times after 2106 for milliseconds)."""
    written = table(fields)
    assert read_table(written) == fields
    assert plain(pamqp.decode.field_table(written)[1]) == fields


def test_floats_keep_their_precision() -> None:
    """A float goes as 64 bits (pamqp's own writer narrows it to 32)."""
    assert read_table(table({"x": 0.1})) == {"x": 0.1}


def test_nested_to_the_limit() -> None:
    """32 levels can be written and read; 33 are refused on either side."""
    fields: dict[str, Any] = {}
    for _ in range(MAX_DEPTH - 1):
        fields = {"t": fields}
    assert read_table(table(fields)) == fields
    with pytest.raises(Unsendable, match="nested"):
        table({"t": fields})
    deeper = table({})
    for _ in range(MAX_DEPTH):
        deeper = struct.pack(">I", len(deeper) + 3) + b"\x01tF" + deeper
    with pytest.raises(Malformed, match="nested"):
        read_table(deeper)


def test_lists_nested_to_the_limit() -> None:
    """A list counts as a level like a table."""
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 2):
        value = [value]
    assert read_table(table({"a": value})) == {"a": value}
    with pytest.raises(Unsendable, match="nested"):
        table({"a": [value]})


def test_a_list_that_holds_itself() -> None:
    """Endless values are refused by their depth."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(Unsendable, match="nested"):
        table({"endless": endless})


def test_number_of_values_is_limited() -> None:
    """As many values as the limit can be written and read, one more is refused on either side."""
    most: list[Any] = [None] * (MAX_ENTRIES - 1)
    assert read_table(table({"a": most})) == {"a": most}
    with pytest.raises(Unsendable, match="too many"):
        table({"a": [*most, None]})
    values = b"V" * MAX_ENTRIES
    array = b"\x01aA" + struct.pack(">I", len(values)) + values
    with pytest.raises(Malformed, match="more than"):
        read_table(struct.pack(">I", len(array)) + array)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (2**63, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        ({1: "x"}, "not str"),
        ({None: "x"}, "not str"),
        ({"k" * 256: 1}, "256 bytes"),
        ("\ud800", "UTF-8"),
        ({"\ud800": 1}, "UTF-8"),
        (object(), "object"),
        ((1, 2), "tuple"),
        ({1, 2}, "set"),
        (1j, "complex"),
        (Decimal("NaN"), "Decimal"),
        (Decimal("Infinity"), "Decimal"),
        (Decimal("1E+1000000"), "Decimal"),
        (Decimal("1E-256"), "Decimal"),
        (Decimal(2**31), "Decimal"),
        (datetime(1969, 12, 31, tzinfo=UTC), "1970"),
        (memoryview(b""), "memoryview"),
    ],
)
def test_what_a_table_cannot_hold(value: Any, why: str) -> None:
    """Nothing is converted by accident: such a value is refused, with the place where it stands."""
    with pytest.raises(Unsendable, match=why) as raised:
        table({"here": [value]})
    assert "headers['here']" in str(raised.value)


def test_a_long_decimal_with_trailing_zeros() -> None:
    """Decimal's digits are judged before they become an integer; zero has no length of its own."""
    assert read_table(table({"zero": Decimal(0), "ten": Decimal("1E+1")})) == {"zero": Decimal(0), "ten": Decimal(10)}


@pytest.mark.parametrize("text", ["a" * 255, "é" * 127 + "a", "", "\U0001f600" * 63])
def test_short_strings_up_to_255_bytes(text: str) -> None:
    """255 bytes fit, however many letters they are."""
    assert short_string(text) == bytes([len(text.encode())]) + text.encode()


@pytest.mark.parametrize("text", ["a" * 256, "é" * 128])
def test_short_strings_of_256_bytes(text: str) -> None:
    """256 bytes do not fit, be they 128 letters."""
    with pytest.raises(Unsendable, match="256 bytes"):
        short_string(text)


def test_naive_times_are_utc() -> None:
    """A datetime without a zone counts as UTC, whatever the machine's zone is."""
    naive = datetime(2024, 2, 29, 12, 30)  # noqa: DTZ001 - the point of the test
    assert timestamp(naive) == struct.pack(">Q", int(naive.replace(tzinfo=UTC).timestamp()))


# --- methods ------------------------------------------------------------------------------------------------------

METHODS = [
    commands.Connection.Start(0, 9, {"a": [1, {"b": None}]}, "PLAIN", "en_US"),
    commands.Connection.Tune(2047, 131072, 60),
    commands.Connection.Close(320, "CONNECTION_FORCED", 60, 40),
    commands.Connection.Blocked("low on memory"),
    commands.Channel.Close(404, "NOT_FOUND", 60, 40),
    commands.Channel.Flow(True),
    commands.Queue.DeclareOk("q", 3, 1),
    commands.Queue.Declare(0, "q", True, False, True, False, True, {"x-max-length": 5}),
    commands.Exchange.Declare(0, "e", "topic", False, True, False, True, False, {}),
    commands.Basic.Return(312, "NO_ROUTE", "", "key"),
    commands.Basic.GetOk(1, True, "", "key", 7),
    commands.Basic.Nack(5, True, False),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_agree_with_pamqp(method: Any) -> None:
    """Pamqp's bytes are read to pamqp's values, and what is written from those is read by pamqp to the same."""
    read = read_method(pamqp.frame.marshal(method, 1)[7:-1])
    assert type(read) is type(method)
    assert dict(read) == dict(method)
    written = frame(1, 1, method_payload(type(method), **dict(method)))
    assert dict(pamqp.frame.unmarshal(written)[2]) == dict(method)  # type: ignore[call-overload]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_end_where_they_end(method: Any) -> None:
    """Each byte less and each byte more is malformed; nothing is read past the end."""
    payload = pamqp.frame.marshal(method, 1)[7:-1]
    for cut in range(len(payload)):
        with pytest.raises(Malformed):
            read_method(payload[:cut])
    with pytest.raises(Malformed, match="follow"):
        read_method(payload + b"\x00")


def test_unknown_method() -> None:
    """A method that AMQP 0-9-1 does not have is malformed."""
    with pytest.raises(Malformed, match=r"60\.9999"):
        read_method(struct.pack(">HH", 60, 9999))


def test_an_argument_that_does_not_exist() -> None:
    """A misspelt argument is a mistake of ours, and heard of."""
    with pytest.raises(TypeError, match="quue"):
        method_payload(commands.Queue.Delete, quue="x")


def test_names_that_pamqp_refuses() -> None:
    """RabbitMQ takes any name of up to 255 bytes; so does this."""
    name = "größe {1}" * 20
    assert read_method(method_payload(commands.Queue.Delete, queue=name)).queue == name  # type: ignore[attr-defined]


def test_text_that_is_cut_inside_a_letter() -> None:
    """A reply text that was cut at 255 bytes is shown, not refused."""
    payload = method_payload(commands.Channel.Close, reply_code=404, reply_text="é" * 127)
    cut = payload.replace(b"\xfe" + "é".encode() * 127, b"\xfd" + "é".encode() * 126 + b"\xc3")
    assert read_method(cut).reply_text == "é" * 126 + "\\xc3"  # type: ignore[attr-defined]


def test_strings_that_are_no_text() -> None:
    """A long string need not be UTF-8 (AMQP 0-9-1, 4.2.5.3): it is read as bytes then, and ends no connection."""
    entry = b"\x01aS" + struct.pack(">I", 2) + b"\xff\xfe"
    assert read_table(struct.pack(">I", len(entry)) + entry) == {"a": b"\xff\xfe"}


def test_repeated_fields_keep_the_first() -> None:
    """Of a name that comes twice the first value counts."""
    entries = table({"a": 1})[4:] + table({"a": 2})[4:]
    assert read_table(struct.pack(">I", len(entries)) + entries) == {"a": 1}


def test_times_beyond_the_calendar_stay_numbers() -> None:
    """A timestamp in milliseconds or worse does not end a connection."""
    entry = b"\x01tT" + struct.pack(">Q", 2**64 - 1)
    assert read_table(struct.pack(">I", len(entry)) + entry) == {"t": 2**64 - 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01a",
        b"\x00\x00\x00\x03\x01aZ",  # unknown type
        b"\x00\x00\x00\x06\x01aS\x00\x00\x00",  # a number that ends early
        b"\x00\x00\x00\x07\x01aS\xff\xff\xff\xff",  # a string of 4 GiB
        b"\x00\x00\x00\x07\x01aF\x00\x00\x00\x05",  # a table that is longer than its table
        b"\x00\x00\x00\x02\x01a\x01a",  # a value beyond its table's end
        b"\x00\x00\x00\x00\x00",  # trailing
    ],
)
def test_malformed_tables(data: bytes) -> None:
    """Lengths that lie and types that do not exist are malformed, and nothing else."""
    with pytest.raises(Malformed):
        read_table(data)


def test_a_string_that_runs_past_its_table() -> None:
    """A value inside a table must end inside it, even where the frame goes on."""
    inner = b"\x01aS" + struct.pack(">I", 4) + b"abcd"
    with pytest.raises(Malformed, match="last entry of a table ends after"):
        read_table(struct.pack(">I", len(inner) - 2) + inner)


def test_a_value_that_runs_past_its_array() -> None:
    """The same for an array."""
    value = b"S" + struct.pack(">I", 4) + b"abcd"
    entry = b"\x01aA" + struct.pack(">I", len(value) - 2) + value
    with pytest.raises(Malformed, match="last value of an array ends after"):
        read_table(struct.pack(">I", len(entry)) + entry)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda: short_string(b"x", "type"), "type must be str, not bytes"),  # type: ignore[arg-type]
        (lambda: timestamp(5), "timestamp must be a datetime, not int"),  # type: ignore[arg-type]
        (lambda: table([("a", 1)]), "headers must be a mapping, not list"),  # type: ignore[arg-type]
    ],
)
def test_values_of_another_type(write: Any, why: str) -> None:
    """What a caller without a type checker hands in is refused by name, not by accident."""
    with pytest.raises(Unsendable, match=why):
        write()


@given(st.binary(max_size=120))
def test_any_bytes_are_malformed_or_read(data: bytes) -> None:
    """Readers raise nothing but `Malformed`."""
    for read in (read_table, read_method, read_content_header):
        try:
            read(data)
        except Malformed:
            pass


@given(st.sampled_from(METHODS), st.data())
def test_mutated_methods(method: Any, data: st.DataObject) -> None:
    """A method with bytes changed is malformed or read, nothing else."""
    payload = bytearray(pamqp.frame.marshal(method, 1)[7:-1])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_method(payload)
    except Malformed:
        pass


def test_content_header_of_another_class() -> None:
    """Class, weight and flags that AMQP does not have are malformed."""
    good = struct.pack(">HHQH", 60, 0, 5, 0)
    assert read_content_header(good).body_size == 5
    for bad in (
        struct.pack(">HHQH", 50, 0, 5, 0),
        struct.pack(">HHQH", 60, 1, 5, 0),
        struct.pack(">HHQH", 60, 0, 5, 1),
    ):
        with pytest.raises(Malformed):
            read_content_header(bad)


@pytest.mark.parametrize(("size", "kept"), [(32, True), (255, True), (256, False), (100_000, False)])
def test_a_token_of_a_stranger(size: int, kept: bool) -> None:
    """A returned message may carry any header; one that is longer than any token of ours is not kept."""
    properties = commands.Basic.Properties(headers={"x-warrener-token": "t" * size})
    payload = pamqp.frame.marshal(ContentHeader(body_size=0, properties=properties), 1)[7:-1]
    assert (read_content_header(payload).token is not None) is kept
