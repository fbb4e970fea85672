"""What ``warrener publish`` reads: the same pieces however the bytes come."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warrener._cli import publish_input
from warrener._cli.publish_input import BadInput, Target, described, pieces, size_of
from warrener.errors import Nacked
from warrener.records import Message


def read(path: Path) -> list[publish_input.Piece]:
    return [piece for batch in pieces([str(path)], "lines") for piece in batch]


@given(st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b" ", b"\xff"]), max_size=40), st.integers(1, 9))
def test_lines_do_not_depend_on_how_they_are_read(tmp_path_factory, parts: list[bytes], chunk: int) -> None:
    """Any size of read gives the same lines, numbers, digests and bytes."""
    path = tmp_path_factory.getbasetemp() / "lines"
    data = b"".join(parts)
    path.write_bytes(data)
    whole = read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish_input, "_CHUNK", chunk)
        assert whole == read(path)
    lines = [(number, line.removesuffix(b"\r")) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    assert [(f"{path}:{number}", line) for number, line in lines] == [(piece.where, piece.data) for piece in whole]


def test_the_digest_is_of_everything_so_far(tmp_path) -> None:
    """Equal beginnings have equal digests, and moving a line end changes them."""
    digests = []
    for number, data in enumerate((b"ab\nc\nd\n", b"ab\nc\nX\n", b"a\nbc\nd\n")):
        path = tmp_path / str(number)
        path.write_bytes(data)
        digests.append([piece.digest for piece in read(path)])
    assert digests[0][:2] == digests[1][:2]
    assert not set(digests[0]) & set(digests[2])
    assert digests[0][2] != digests[1][2]


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch) -> None:
    """The limit holds while the line is still being read."""
    monkeypatch.setattr(publish_input, "_MAX_LINE", 1000)
    path = tmp_path / "in"
    path.write_bytes(b"a\n" + b"b" * 200_000)
    with pytest.raises(BadInput, match=r"in:2: a line has more than 1000 bytes"):
        read(path)


def test_a_file_that_is_too_large_is_refused_by_name(tmp_path, monkeypatch) -> None:
    """And not read to its end."""
    monkeypatch.setattr(publish_input, "MAX_BODY", 10)
    path = tmp_path / "in"
    path.write_bytes(b"b" * 50)
    ((piece,),) = pieces([str(path)], "files")
    assert 11 == len(piece.data)
    with pytest.raises(BadInput, match=r"in: the body has more than 10 bytes, which is the maximum"):
        Target(routing_key="q").message(piece, "files", "id")


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_MESSAGES = st.builds(
    Message,
    st.binary(max_size=20),
    exchange=_TEXT,
    routing_key=_TEXT,
    headers=st.dictionaries(_TEXT, st.none() | st.integers(0, 9) | _TEXT | st.lists(_TEXT, max_size=2), max_size=2),
    content_type=st.none() | _TEXT,
    priority=st.none() | st.integers(0, 255),
    expiration=st.none() | st.floats(0, 1000),
    correlation_id=st.none() | _TEXT,
    persistent=st.booleans(),
    mandatory=st.booleans(),
)


@given(_MESSAGES)
def test_what_is_written_down_is_read_as_the_same_message(message: Message) -> None:
    """All fields, whatever the options of the second run say."""
    line = described(message, Nacked(message.message_id, "full"), "in:1")
    piece = publish_input.Piece("in:1", line.encode(), b"", 0, "in", 2, 0)
    again = Target("other", "other", "text/other").message(piece, "messages", "other")
    assert message == again


def test_the_size_is_known_for_files_only(tmp_path) -> None:
    """A bar has an end only where there is one."""
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_bytes(b"123")
    assert 6 == size_of([str(tmp_path)])
    assert size_of([str(tmp_path / "a"), "-"]) is None
