from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.wire.framing import (
    DEFAULT_MAX_MESSAGE_BYTES,
    FRAME_MARK,
    Frame,
    Line,
    Message,
    MessageReader,
    Oversized,
    encode_frame,
)

LIMIT = 24

# What is written, and what must be read of it.
Piece = tuple[bytes, Message | None]


def _line(data: bytes) -> Piece:
    if len(data) > LIMIT:
        return data + b"\n", Oversized(len(data), LIMIT)
    return data + b"\n", Line(data) if data.strip() else None


def _frame(body: bytes) -> Piece:
    return encode_frame(body), Oversized(len(body), LIMIT) if len(body) > LIMIT else Frame(body)


def _is_line(data: bytes) -> bool:
    return b"\n" not in data and not data.startswith(bytes([FRAME_MARK]))


_bytes = st.binary(max_size=2 * LIMIT)
_near_the_limit = st.integers(LIMIT - 1, LIMIT + 1).map(lambda size: b"x" * size)
_pieces = st.lists(
    (_bytes.filter(_is_line) | _near_the_limit).map(_line) | (_bytes | _near_the_limit).map(_frame), max_size=8
)


def _cut(data: bytes, points: Iterable[int]) -> list[bytes]:
    ends = sorted({min(point, len(data)) for point in points} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def _read(reader: MessageReader, chunks: Iterable[bytes]) -> list[Message]:
    messages = [message for chunk in chunks for message in reader.feed(chunk)]
    return [*messages, *reader.finish()]


def _without_sizes(messages: Sequence[Message | None]) -> list[Message]:
    """How much of a long line is known when it is reported depends on where it was cut."""
    kept = [message for message in messages if message is not None]
    return [Oversized(0, message.limit) if isinstance(message, Oversized) else message for message in kept]


@given(pieces=_pieces, points=st.lists(st.integers(0, 16 * LIMIT), max_size=40))
def test_lines_and_frames_cut_anywhere_are_read_as_they_were_written(pieces: list[Piece], points: list[int]) -> None:
    stream = b"".join(written for written, _ in pieces)
    messages = _read(MessageReader(LIMIT), _cut(stream, points))
    assert _without_sizes(messages) == _without_sizes([expected for _, expected in pieces])
    assert all(message.size > LIMIT for message in messages if isinstance(message, Oversized))


@given(pieces=_pieces)
def test_one_byte_at_a_time_is_read_like_all_at_once(pieces: list[Piece]) -> None:
    stream = b"".join(written for written, _ in pieces)
    whole = _read(MessageReader(LIMIT), [stream])
    assert whole == [expected for _, expected in pieces if expected is not None]
    single = _read(MessageReader(LIMIT), [stream[at : at + 1] for at in range(len(stream))])
    assert _without_sizes(single) == _without_sizes(whole)


@given(garbage=st.binary(max_size=4 * LIMIT), points=st.lists(st.integers(0, 4 * LIMIT), max_size=8))
def test_whatever_a_line_holds_the_next_line_is_read_where_no_frames_are_expected(
    garbage: bytes, points: list[int]
) -> None:
    reader = MessageReader(LIMIT, frames=False)
    messages = _read(reader, _cut(garbage + b"\n" + b"{}\n", points))
    assert messages[-1] == Line(b"{}")
    assert not any(isinstance(message, Frame) for message in messages)


@given(garbage=st.binary(max_size=4 * LIMIT), limit=st.integers(1, LIMIT))
def test_no_message_is_longer_than_the_limit(garbage: bytes, limit: int) -> None:
    for message in _read(MessageReader(limit), [garbage]):
        assert message.size > message.limit == limit if isinstance(message, Oversized) else len(message.data) <= limit


def test_a_line_of_the_limits_length_is_a_message_and_one_byte_more_is_not() -> None:
    reader = MessageReader(4)
    assert list(reader.feed(b"1234\n12345\n")) == [Line(b"1234"), Oversized(5, 4)]


def test_a_frame_of_the_limits_length_is_a_message_and_one_byte_more_is_not() -> None:
    reader = MessageReader(4)
    assert list(reader.feed(encode_frame(b"1234") + encode_frame(b"12345"))) == [Frame(b"1234"), Oversized(5, 4)]


def test_the_default_limit_is_16_mib() -> None:
    reader = MessageReader()
    body = b"x" * DEFAULT_MAX_MESSAGE_BYTES
    assert [type(message) for message in reader.feed(encode_frame(body) + body + b"y\n")] == [Frame, Oversized]


def test_a_long_line_is_reported_once_and_as_soon_as_it_is_too_long() -> None:
    reader = MessageReader(4)
    assert list(reader.feed(b"123")) == []
    assert list(reader.feed(b"456")) == [Oversized(6, 4)]
    assert list(reader.feed(b"7890" * 5)) == []
    assert list(reader.feed(b"end\nok\n")) == [Line(b"ok")]


def test_a_long_frame_is_reported_when_its_header_is_known_and_its_body_is_skipped() -> None:
    reader = MessageReader(4)
    frame = encode_frame(b"\n{}\n" + bytes([FRAME_MARK]) * 10)
    assert list(reader.feed(frame[:5])) == [Oversized(14, 4)]
    assert list(reader.feed(frame[5:9])) == []
    assert list(reader.feed(frame[9:] + b"ok\n")) == [Line(b"ok")]


def test_the_frame_mark_inside_a_long_line_starts_no_frame() -> None:
    reader = MessageReader(4)
    assert list(reader.feed(b"12345")) == [Oversized(5, 4)]
    assert list(reader.feed(bytes([FRAME_MARK]) + b"\0\0\0\x01x\nok\n")) == [Line(b"ok")]


def test_what_was_not_taken_from_one_feed_comes_with_the_next() -> None:
    reader = MessageReader(4)
    assert next(reader.feed(b"toolong")) == Oversized(7, 4)
    assert next(reader.feed(b"er\n1\n2\n")) == Line(b"1")
    assert list(reader.feed(b"")) == [Line(b"2")]
    assert next(reader.feed(b"1\n" + encode_frame(b"2"))) == Line(b"1")
    assert list(reader.finish()) == [Frame(b"2")]


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b"  \t\n"])
def test_blank_lines_are_no_messages(blank: bytes) -> None:
    assert list(MessageReader().feed(blank + b"{}\n" + blank)) == [Line(b"{}")]


def test_an_empty_frame_is_a_message() -> None:
    assert list(MessageReader().feed(encode_frame(b""))) == [Frame(b"")]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (b"", []),
        (b"{}", [Line(b"{}")]),
        (b"  ", []),
        (b"12345", []),
        (encode_frame(b"1234")[:-1], []),
        (encode_frame(b"1234")[:3], []),
        (encode_frame(b"12345")[:-1], []),
    ],
)
def test_the_end_of_the_file_completes_a_line_but_no_frame(left: bytes, expected: list[Message]) -> None:
    reader = MessageReader(4)
    messages = list(reader.feed(left))
    assert all(isinstance(message, Oversized) for message in messages)
    assert list(reader.finish()) == expected
    assert list(reader.finish()) == []


def test_a_frame_carries_any_bytes() -> None:
    body = bytes(range(256)) * 2
    assert encode_frame(body) == bytes([FRAME_MARK]) + len(body).to_bytes(4, "big") + body
    assert list(MessageReader().feed(encode_frame(body))) == [Frame(body)]
