"""Reading server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

from collections.abc import Iterator


class EventReader:
    """Feed it the bytes of a stream as they come; it yields the data of the events that are complete.

    Comments and other fields than `data` are passed over; the lines of one event's data are joined by line breaks.
    """

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        if b"\r" in self._buffer:
            self._unify_line_ends()
        *events, self._buffer = self._buffer.split(b"\n\n")
        for event in events:
            found = _data_of(event)
            if found is not None:
                yield found

    def _unify_line_ends(self) -> None:
        # The other half of a line end may still come.
        held = b"\r" if self._buffer.endswith(b"\r") else b""
        body = self._buffer.removesuffix(b"\r")
        self._buffer = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held


def _data_of(event: bytes) -> bytes | None:
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].removeprefix(b" ")
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
