"""One JSON value that comes in pieces: where it ends, without waiting for its end."""

from __future__ import annotations

from collections.abc import Callable

_SCALAR_ENDS = frozenset(' \t\r\n,:}]"{[<')
_CLOSES = {"{": "}", "[": "]"}
_CONTROL_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class JsonValue:
    """Takes the text of one value and emits it as it comes. It minds brackets and strings; whether numbers and words
    are right shows when the value is read.

    Line breaks and tabs inside of strings, which models write and JSON forbids, come out escaped.
    """

    def __init__(self, emit: Callable[[str], object]) -> None:
        self._emit = emit
        self._open: list[str] = []  # what closes the brackets that are open
        self._in_string = False
        self._escaped = False
        self._in_scalar = False
        self.is_broken = False
        """Whether it cannot be JSON, whatever comes."""

    def take(self, piece: str) -> int | None:
        """How much of the piece belonged to the value, if it ended or broke there; None if it goes on."""
        taken: list[str] = []
        used: int | None = None
        for index, char in enumerate(piece):
            if self._in_scalar and char in _SCALAR_ENDS:
                self._in_scalar = False
                if not self._open:
                    used = index
                    break
            step = self._step(char)
            if step is None:
                self.is_broken = True
                used = index
                break
            taken.append(step)
            if not (self._open or self._in_string or self._in_scalar):
                used = index + 1
                break
        if taken:
            self._emit("".join(taken))
        return used

    def _step(self, char: str) -> str | None:
        if self._in_string:
            return self._step_in_string(char)
        if char == '"':
            self._in_string = True
        elif char in _CLOSES:
            self._open.append(_CLOSES[char])
        elif char in "}]":
            if not self._open or self._open.pop() != char:
                return None
        elif char not in _SCALAR_ENDS:
            self._in_scalar = True
        elif not self._open:
            return None
        return char

    def _step_in_string(self, char: str) -> str:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
        else:
            return _CONTROL_ESCAPES.get(char, char)
        return char
