"""An answer as its parts: what the model thinks, says and calls, in the order in which it comes.

A part grows until something of another kind comes, or another call: then it has ended, and none ever grows again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mlx_serving.core.generation import Delta, Logprobs, ToolCallDelta
from mlx_serving.errors import ProtocolError

PartKind: TypeAlias = Literal["reasoning", "text", "call"]


@dataclass(slots=True, eq=False)
class Part:
    """`number` is its place in the answer. A call has the `call_id` and the `name` of its tool; its text is the JSON of
    the arguments."""

    kind: PartKind
    number: int
    call_index: int = -1
    call_id: str = ""
    name: str = ""
    logprobs: list[Logprobs] = field(default_factory=list[Logprobs])
    _pieces: list[str] = field(default_factory=list[str])

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def grow(self, piece: str) -> None:
        self._pieces.append(piece)


@dataclass(frozen=True, slots=True)
class Began:
    part: Part


@dataclass(frozen=True, slots=True)
class Grew:
    """`logprobs` are those of the tokens that `text` came from, and of tokens before it that showed nothing."""

    part: Part
    text: str
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    part: Part


PartEvent: TypeAlias = Began | Grew | Ended


class AnswerParts:
    """The parts of one sequence, from its deltas."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._open: Part | None = None
        self._logprobs: list[Logprobs] = []  # of tokens whose text has not come yet

    def feed(self, delta: Delta) -> Iterator[PartEvent]:
        """What a delta does to the parts, in order. Raises `ProtocolError` for a call that goes on after its end, or
        begins without an id or a name."""
        self._logprobs += delta.logprobs
        if delta.reasoning:
            self._logprobs.clear()  # of what is said only
            yield from self._grow("reasoning", delta.reasoning)
        if delta.text:
            yield from self._grow("text", delta.text)
        for call in delta.tool_calls:
            self._logprobs.clear()
            yield from self._call(call)

    def finish(self) -> Iterator[PartEvent]:
        """The end of the last part."""
        if self._open is not None:
            self._open.logprobs += self._logprobs
            yield Ended(self._open)
            self._open = None

    def _grow(self, kind: Literal["reasoning", "text"], text: str) -> Iterator[PartEvent]:
        part = self._open
        if part is None or part.kind != kind:
            part = Part(kind, len(self.parts))
            yield from self._begin(part)
        logprobs = tuple(self._logprobs)
        self._logprobs.clear()
        part.logprobs += logprobs
        part.grow(text)
        yield Grew(part, text, logprobs)

    def _call(self, call: ToolCallDelta) -> Iterator[PartEvent]:
        part = self._open
        if part is None or part.call_index != call.index:
            if not call.id or not call.name:
                raise ProtocolError(f"Call {call.index} of the answer goes on after its end, or began without a name")
            part = Part("call", len(self.parts), call.index, call.id, call.name)
            yield from self._begin(part)
        if call.arguments:
            part.grow(call.arguments)
            yield Grew(part, call.arguments)

    def _begin(self, part: Part) -> Iterator[PartEvent]:
        if self._open is not None:
            yield Ended(self._open)
        self.parts.append(part)
        self._open = part
        yield Began(part)
