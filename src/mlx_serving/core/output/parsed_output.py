"""The parts of an answer as they become known: what the model thinks, says and calls."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from mlx_serving.core.generation import ToolCallDelta

IdStyle: TypeAlias = Literal["long", "short"]
"""`short` ids are nine letters and digits: Mistral's templates refuse any others."""


def call_id(stream: str, index: int, style: IdStyle = "long") -> str:
    """The id of a stream's call: the same whenever it is asked for."""
    digest = hashlib.sha256(f"{stream}\n{index}".encode()).hexdigest()
    return digest[:9] if style == "short" else f"call_{digest[:24]}"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a piece of text came to."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class OutputSink:
    """Gathers the parts. White space around reasoning and, with `trims`, between what is said and calls, separates and
    is no part of either. Of the calls after the first `max_calls` nothing is kept."""

    def __init__(self, stream: str, *, style: IdStyle, trims: bool, max_calls: int | None) -> None:
        self._stream = stream
        self._style: IdStyle = style
        self._trims = trims
        self._max_calls = max_calls
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._space = ""  # white space that counts only if more comes after it
        self._thought_space = ""
        self._leading = False  # white space separates from what was before
        self._thinks = False
        self.has_spoken = False
        """Whether anything but white space was said."""
        self.calls = 0
        """Calls that were begun, with those that are not kept."""
        self.calls_ended = 0

    def say(self, text: str) -> None:
        if self._leading:
            text = text.lstrip()
            self._leading = not text
        self.has_spoken = self.has_spoken or bool(text.strip())
        if not self._trims:
            self._text.append(text)
            return
        said = text.rstrip()
        if said:
            self._text.append(self._space + said)
            self._space = text[len(said) :]
        else:
            self._space += text

    def think(self, text: str) -> None:
        if not self._thinks:
            text = text.lstrip()
        thought = text.rstrip()
        if thought:
            self._reasoning.append(self._thought_space + thought)
            self._thought_space = text[len(thought) :]
            self._thinks = True
        else:
            self._thought_space += text

    def separate(self) -> None:
        """A call begins or has ended here."""
        self._space = ""
        self._leading = self._trims

    def break_thought(self) -> None:
        """Thinking has ended; white space before what is said after it separates them."""
        self._thought_space = ""
        self._thinks = False
        self._leading = True

    def end_call(self) -> None:
        """The last call is complete."""
        self.calls_ended = self.calls

    def begin_call(self, name: str, model_id: str | None = None) -> None:
        """`model_id` is the id that the model gave the call, if it gives any."""
        index = self.calls
        self.calls += 1
        if self._max_calls is None or index < self._max_calls:
            given = model_id or call_id(self._stream, index, self._style)
            self._calls.append(ToolCallDelta(index, given, name))

    def argue(self, arguments: str) -> None:
        """More of the JSON text of the last call's arguments."""
        index = self.calls - 1
        if self._max_calls is not None and index >= self._max_calls:
            return
        if self._calls and self._calls[-1].index == index:
            self._calls[-1] = replace(self._calls[-1], arguments=self._calls[-1].arguments + arguments)
        else:
            self._calls.append(ToolCallDelta(index, arguments=arguments))

    def finish(self) -> None:
        """The text has ended: white space that nothing separates is part of it."""
        self._text.append(self._space)
        self._reasoning.append(self._thought_space)
        self._space = self._thought_space = ""

    def take(self) -> Parts:
        """What has come since the last time."""
        parts = Parts("".join(self._text), "".join(self._reasoning), tuple(self._calls))
        self._text, self._reasoning, self._calls = [], [], []
        return parts
