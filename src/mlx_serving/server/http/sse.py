"""Server-sent events as bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
"""Clients skip lines that begin with a colon."""

RESPONSE_HEADERS: Sequence[tuple[bytes, bytes]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the stream otherwise
)


def event(data: bytes) -> bytes:
    """One event of one line; JSON never has a raw line break."""
    return b"data: " + data + b"\n\n"


def data_of(events: bytes) -> Iterator[bytes]:
    """What `event` was given, of each of several events."""
    for each in events.split(b"\n\n"):
        if each:
            yield each.removeprefix(b"data: ")


def named_event(name: str, data: bytes) -> bytes:
    """The same with a name, which some clients tell events apart by."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
