"""A text that comes in pieces, read as if it were all there.

What reads it is written as generators: one that needs more of the text than has come yields, and goes on where it was
when there is more. So a reader says what a text looks like, and how the text was cut makes no difference to it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Reading: TypeAlias = Generator[None, None, T]
"""A reader at work. It yields when it needs more text."""

Emit: TypeAlias = Callable[[str], object]


class TextCut(Exception):
    """The text ended where a reader needs more."""


class TextScanner:
    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._keep: int | None = None

    def put(self, text: str) -> None:
        """More of the text has come."""
        used = self._at if self._keep is None else self._keep
        self._text = self._text[used:] + text
        self._at -= used
        if self._keep is not None:
            self._keep = 0

    def end(self) -> None:
        """The text has come to its end."""
        self._ended = True

    def keep(self) -> None:
        """Remember the place, for `go_back`."""
        self._keep = self._at

    def forget(self) -> None:
        """The place that was remembered is not needed any more."""
        self._keep = None

    def go_back(self) -> None:
        """Read again from the place that was remembered, and forget it."""
        assert self._keep is not None
        self._at, self._keep = self._keep, None

    def until(self, markers: Sequence[str], emit: Emit) -> Reading[str | None]:
        """Pass the text on up to the first of the markers, and return that one, or None where the text ends before any.
        Of several that begin at one place, the longest counts. What may yet become a marker is held back."""
        while True:
            start, marker = self._first(markers)
            partial = len(self._text) if self._ended else self._partial(markers)
            if marker is not None and start < partial:
                self._pass_on(start, emit)
                self._at += len(marker)
                return marker
            self._pass_on(partial, emit)
            if self._ended:
                return None
            yield

    def peek(self) -> Reading[str]:
        """The next character, which stays where it is; "" at the end."""
        while self._at == len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def skip_space(self) -> Reading[str]:
        """Pass over white space; returns what `peek` would."""
        while True:
            next_one = yield from self.peek()
            if not next_one.isspace():
                return next_one
            self._at += 1

    def accept(self, wanted: str) -> Reading[bool]:
        """Pass over `wanted`, if that is what comes next."""
        while len(self._text) - self._at < len(wanted) and not self._ended:
            if not wanted.startswith(self._text[self._at :]):
                return False
            yield
        if not self._text.startswith(wanted, self._at):
            return False
        self._at += len(wanted)
        return True

    def take(self, consume: Callable[[str], int | None]) -> Reading[None]:
        """Hand the text to `consume` as it comes, until it says how much of the last piece was its own. Raises
        `TextCut` where the text ends before."""
        while True:
            yield from self.peek()
            piece = self._text[self._at :]
            if not piece:
                raise TextCut
            used = consume(piece)
            self._at += len(piece) if used is None else used
            if used is not None:
                return

    def _pass_on(self, end: int, emit: Emit) -> None:
        if end > self._at:
            emit(self._text[self._at : end])
            self._at = end

    def _first(self, markers: Sequence[str]) -> tuple[int, str | None]:
        best: tuple[int, str | None] = (len(self._text), None)
        for marker in markers:
            start = self._text.find(marker, self._at)
            if start >= 0 and (start, -len(marker)) < (best[0], -len(best[1] or "")):
                best = (start, marker)
        return best

    def _partial(self, markers: Sequence[str]) -> int:
        """Where the first marker begins that the text ends in the middle of; the end of the text if there is none."""
        length = len(self._text)
        longest = max(map(len, markers), default=0)
        for start in range(max(self._at, length - longest + 1), length):
            rest = self._text[start:]
            if any(len(marker) > len(rest) and marker.startswith(rest) for marker in markers):
                return start
        return length
