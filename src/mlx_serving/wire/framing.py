"""Cutting a byte stream into messages, for both directions of the pipe.

Two kinds of message share one stream and cannot be confused: a JSON text is a line, ended by a newline, and never
starts with byte 0xC1 (which UTF-8 does not contain and MessagePack never uses); a binary frame is 0xC1, the length of
its body as four bytes big-endian, and the body.

What is too long is skipped to its end and reported once, so that it never poisons what follows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

FRAME_MARK = 0xC1
_HEADER = struct.Struct(">BI")
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # pictures come in them


@dataclass(frozen=True, slots=True)
class Line:
    """A line, without its newline; not yet known to be JSON."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    data: bytes


@dataclass(frozen=True, slots=True)
class Oversized:
    """A message longer than the limit was dropped. `size` is what is known of its length."""

    size: int
    limit: int


Message: TypeAlias = Line | Frame | Oversized


def encode_frame(body: bytes) -> bytes:
    return _HEADER.pack(FRAME_MARK, len(body)) + body


class MessageReader:
    """Feed it bytes as they come; it yields the messages that are complete. `finish` yields what an end of file leaves:
    a last line without a newline is a message, a cut frame is not.

    Both are generators: what is not taken from one stays for the next. Blank lines are no messages. With
    `frames=False` every byte belongs to a line: the end that is never sent frames must not take a stray 0xC1 for one,
    and wait for up to four gigabytes that never come.
    """

    def __init__(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES, *, frames: bool = True) -> None:
        self._limit = max_message_bytes
        self._frames = frames
        self._buffer = bytearray()
        self._scanned = 0  # bytes of the buffer known to hold no newline
        self._skip_line = False
        self._skip_bytes = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while self._buffer:
            if self._skip_bytes:
                skipped = min(self._skip_bytes, len(self._buffer))
                del self._buffer[:skipped]
                self._skip_bytes -= skipped
                continue
            if self._at_frame():
                if len(self._buffer) < _HEADER.size:
                    return
                size: int = _HEADER.unpack_from(self._buffer)[1]
                end = _HEADER.size + size
                if size > self._limit:
                    self._skip_bytes = end
                    yield Oversized(size, self._limit)
                    continue
                if len(self._buffer) < end:
                    return
                body = bytes(self._buffer[_HEADER.size : end])
                del self._buffer[:end]
                yield Frame(body)
                continue
            newline = self._buffer.find(b"\n", self._scanned)
            if newline < 0:
                size = len(self._buffer)
                if not self._skip_line and size <= self._limit:
                    self._scanned = size
                    return
                reported, self._skip_line = self._skip_line, True
                self._scanned = 0
                self._buffer.clear()
                if not reported:
                    yield Oversized(size, self._limit)
                continue
            line = bytes(self._buffer[:newline])
            del self._buffer[: newline + 1]
            self._scanned = 0
            if self._skip_line:
                self._skip_line = False
            elif newline > self._limit:
                yield Oversized(newline, self._limit)
            elif line.strip():
                yield Line(line)

    def finish(self) -> Iterator[Message]:
        yield from self.feed(b"")
        if self._buffer and not self._at_frame():
            yield from self.feed(b"\n")
        self._buffer.clear()

    def _at_frame(self) -> bool:
        return self._frames and not self._skip_line and self._buffer[0] == FRAME_MARK
