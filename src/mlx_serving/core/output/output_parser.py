"""A model's text taken apart into what it thinks, what it says and what it calls, while it is written.

However the text is cut into pieces, the parts add up to the same. No part has markers in it, and what is between them
and makes no sense is in none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mlx_serving.core.output.parsed_output import IdStyle, OutputSink, Parts
from mlx_serving.core.output.text_scanner import Reading, TextCut, TextScanner
from mlx_serving.core.output.tool_arguments import Schemas, schemas_of
from mlx_serving.core.output.tool_call_stream import NO_CALLS, BareCalls, CallFormat


class OutputFormat(Protocol):
    """How a model writes. `trims`: white space between what is said and calls separates them. `ids`: see `call_id`.
    After reasoning that was cut off, the answer begins with `answer_start`."""

    @property
    def trims(self) -> bool: ...

    @property
    def ids(self) -> IdStyle: ...

    @property
    def think_starts(self) -> Sequence[str]: ...

    @property
    def think_ends(self) -> Sequence[str]: ...

    @property
    def answer_start(self) -> str: ...

    def read(self, text: TextScanner, sink: OutputSink, schemas: Schemas, *, thinking: bool) -> Reading[None]:
        """Read a whole answer. `thinking`: it begins in the middle of reasoning. Raises `TextCut`."""
        ...


@dataclass(frozen=True, slots=True)
class MarkedFormat:
    """Reasoning stands between one of `think_starts` and one of `think_ends`, calls as `calls` says. `ignored` markers
    belong to no part. `calls_end_thought`: a call in the middle of reasoning is one, and ends the reasoning."""

    think_starts: Sequence[str] = ()
    think_ends: Sequence[str] = ()
    answer_start: str = ""
    calls: CallFormat = NO_CALLS
    ignored: Sequence[str] = ()
    trims: bool = True
    ids: IdStyle = "long"
    calls_end_thought: bool = False

    def read(self, text: TextScanner, sink: OutputSink, schemas: Schemas, *, thinking: bool) -> Reading[None]:
        starts = self.calls.starts
        in_thought = (*self.think_ends, *(starts if self.calls_end_thought else ()))
        in_speech = (*self.think_starts, *self.think_ends, *starts, *self.ignored)
        while True:
            if thinking:
                found = yield from text.until(in_thought, sink.think)
            else:
                if isinstance(self.calls, BareCalls) and not sink.has_spoken:
                    while (yield from self.calls.try_call(text, sink, schemas)):
                        sink.separate()
                found = yield from text.until(in_speech, sink.say)
            if found is None:
                return
            if found in starts:
                if thinking:
                    sink.break_thought()
                thinking = False
                sink.separate()
                yield from self.calls.read(found, text, sink, schemas)
                sink.separate()
            elif found in self.think_starts:
                thinking = True
                sink.separate()
            elif found in self.think_ends:
                if thinking:
                    sink.break_thought()
                thinking = False


@dataclass(frozen=True, slots=True)
class FormFormat:
    """An answer that has a form, behind reasoning as `thought` marks it: whatever stands in it is said. Where `thought`
    has calls, one that comes first makes it an answer of calls, in which nothing is said."""

    thought: MarkedFormat
    trims: bool = False
    ids: IdStyle = "long"

    @property
    def think_starts(self) -> Sequence[str]:
        return self.thought.think_starts

    @property
    def think_ends(self) -> Sequence[str]:
        return self.thought.think_ends

    @property
    def answer_start(self) -> str:
        return self.thought.answer_start

    def read(self, text: TextScanner, sink: OutputSink, schemas: Schemas, *, thinking: bool) -> Reading[None]:
        if not thinking:
            text.keep()
            yield from text.skip_space()
            for start in sorted(self.think_starts, key=len, reverse=True):
                thinking = thinking or (yield from text.accept(start))
            if thinking:
                text.forget()
            else:
                text.go_back()
        if thinking:
            yield from text.until(self.think_ends, sink.think)
            sink.break_thought()
            yield from text.skip_space()
        yield from text.accept(self.answer_start)
        found = yield from self._call(text)
        if found is None:
            yield from text.until((), sink.say)
        while found is not None:
            yield from self.thought.calls.read(found, text, sink, schemas)
            found = yield from text.until(self.thought.calls.starts, _drop)

    def _call(self, text: TextScanner) -> Reading[str | None]:
        """The marker of a call that comes next, which then is passed over."""
        for start in sorted(self.thought.calls.starts, key=len, reverse=True):
            if (yield from text.accept(start)):
                return start
        return None


def _drop(_: str) -> None:
    pass


def opens_thought(prompt: str, output: OutputFormat) -> bool:
    """Whether a prompt ends in the middle of reasoning, so that the answer begins there."""
    opened = max((prompt.rfind(marker) for marker in output.think_starts), default=-1)
    closed = max((prompt.rfind(marker) for marker in output.think_ends), default=-1)
    if opened < 0 or closed > opened:
        return False
    return any(prompt[opened:].rstrip() == marker for marker in output.think_starts)


class OutputParser:
    """Takes the text of one answer. `stream` decides the ids of calls. `thinking`: the prompt has opened the reasoning.
    With `parallel` false one call is enough."""

    def __init__(
        self,
        output_format: OutputFormat,
        stream: str,
        *,
        tools: Sequence[Mapping[str, object]] = (),
        thinking: bool = False,
        parallel: bool = True,
    ) -> None:
        self._text = TextScanner()
        self._sink = OutputSink(
            stream, style=output_format.ids, trims=output_format.trims, max_calls=None if parallel else 1
        )
        self._parallel = parallel
        self._reading: Reading[None] | None = output_format.read(
            self._text, self._sink, schemas_of(tools), thinking=thinking
        )
        self._go_on()

    @property
    def is_done(self) -> bool:
        """Whether nothing that comes is wanted any more."""
        return not self._parallel and self._sink.calls_ended > 0

    @property
    def calls(self) -> int:
        """Calls that have begun."""
        return self._sink.calls

    def feed(self, text: str) -> Parts:
        """What is certain now."""
        self._text.put(text)
        self._go_on()
        return self._sink.take()

    def finish(self) -> Parts:
        """The rest: the text has ended."""
        self._text.end()
        self._go_on()
        self._sink.finish()
        return self._sink.take()

    def _go_on(self) -> None:
        if self._reading is None:
            return
        try:
            next(self._reading)
        except (StopIteration, TextCut):
            self._reading = None
