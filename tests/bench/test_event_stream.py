from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.bench.event_stream import EventReader

STREAM = b': keep-alive\n\ndata: {"a": 1}\n\nevent: x\ndata: two\ndata:lines\nid: 7\n\nretry: 5\n\ndata: [DONE]\n\n'
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


def read(parts: list[bytes]) -> list[bytes]:
    reader = EventReader()
    return [event for part in parts for event in reader.feed(part)]


def test_events_are_their_data_without_comments_and_other_fields() -> None:
    assert read([STREAM]) == EVENTS


def test_an_event_without_its_end_is_none_yet() -> None:
    assert read([b"data: almost\n"]) == []


@given(st.lists(st.integers(0, len(STREAM) * 2)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_any_cut_and_any_line_end_give_the_same_events(cuts: list[int], line_end: bytes) -> None:
    # With bare \r a last one could be half of a line end: another byte tells.
    stream = STREAM.replace(b"\n", line_end) + (b":" if line_end == b"\r" else b"")
    edges = [0, *sorted(cuts), len(stream)]
    assert read([stream[low:high] for low, high in pairwise(edges)]) == EVENTS
