"""Calls of tools in the text of a model, read as they come.

Every format says which markers begin its calls and reads on from there. Calls whose arguments are JSON are passed on
while they are written; others when they are complete. What is between markers and cannot be read as a call, or breaks
off before it is one, belongs to no part of the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mlx_serving.core.output.json_calls import read_json_call, read_json_calls, stream_arguments
from mlx_serving.core.output.parsed_output import OutputSink
from mlx_serving.core.output.text_scanner import Reading, TextCut, TextScanner
from mlx_serving.core.output.tool_arguments import Schemas, WholeCall
from mlx_serving.core.output.whole_calls import IsWhole, ReadCalls, read_pythonic


class CallFormat(Protocol):
    @property
    def starts(self) -> Sequence[str]:
        """What begins calls in a text."""
        ...

    def read(self, marker: str, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[None]:
        """Read on behind one of `starts`, to where the text goes on that is none of calls. Raises `TextCut`."""
        ...


@dataclass(frozen=True, slots=True)
class WrappedJson:
    """`<start>{"name": …, "arguments": {…}}<end>`, or a list of those."""

    start: str
    end: str

    @property
    def starts(self) -> Sequence[str]:
        return (self.start,)

    def read(self, marker: str, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[None]:
        found: str | None = marker
        while found == marker:
            yield from read_json_calls(text, sink)
            found = yield from text.until((self.end, self.start), _drop)


@dataclass(frozen=True, slots=True)
class HeadedJson:
    """Sections of calls with a header that names the tool, and JSON for its arguments:
    `<section><call>header<arguments>{…}<end>…<section_end>`. `name_of` reads the header."""

    section: str
    section_end: str
    call: str
    arguments: str
    end: str
    name_of: Callable[[str], tuple[str, str | None] | None]

    @property
    def starts(self) -> Sequence[str]:
        return (self.section,)

    def read(self, marker: str, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[None]:
        found = yield from text.until((self.call, self.section_end), _drop)
        while found == self.call:
            header: list[str] = []
            found = yield from text.until((self.arguments, self.end, self.section_end), header.append)
            if found == self.arguments:
                yield from self._call("".join(header).strip(), text, sink)
            if found != self.section_end:
                found = yield from text.until((self.call, self.section_end), _drop)

    def _call(self, header: str, text: TextScanner, sink: OutputSink) -> Reading[None]:
        if header == "function":  # DeepSeek V3: what it calls comes first, then the name, then a block of code
            line: list[str] = []
            yield from text.until(("\n",), line.append)
            header = "".join(line).strip()
            yield from text.accept("```json")
        named = self.name_of(header)
        if named is not None:
            yield from text.skip_space()
            yield from stream_arguments(text, sink, *named)


@dataclass(frozen=True, slots=True)
class MistralCalls:
    """`[TOOL_CALLS]name[ARGS]{…}`, which may come again, or `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`."""

    start: str = "[TOOL_CALLS]"

    @property
    def starts(self) -> Sequence[str]:
        return (self.start,)

    def read(self, marker: str, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[None]:
        found: str | None = marker
        while found == self.start:
            if (yield from text.skip_space()) == "[":
                yield from read_json_calls(text, sink)
                return
            header: list[str] = []
            found = yield from text.until(("[ARGS]", "{", self.start), header.append)
            name = "".join(header).partition("[CALL_ID]")[0].strip()
            if found in ("[ARGS]", "{") and re.fullmatch(r"[\w.-]+", name):
                yield from text.skip_space()
                yield from stream_arguments(text, sink, name, begun_with="{" if found == "{" else "")
                return
            if found != self.start:
                found = yield from text.until((self.start,), _drop)


@dataclass(frozen=True, slots=True)
class WholeCalls:
    """Calls that are read when they are complete. `markers` are what each stands between; `sections`, if there are any,
    what several of them stand between. `sectionless`: a call may also come without its section."""

    markers: Sequence[tuple[str, str]]
    read_calls: ReadCalls
    is_whole: IsWhole = bool
    sections: Sequence[tuple[str, str]] = ()
    sectionless: bool = True

    @property
    def starts(self) -> Sequence[str]:
        sections = tuple(start for start, _ in self.sections)
        return (*sections, *self._calls) if self.sectionless else sections

    @property
    def _calls(self) -> Sequence[str]:
        return tuple(start for start, _ in self.markers)

    def read(self, marker: str, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[None]:
        section_ends = [end for start, end in self.sections if start == marker]
        marks = (*self._calls, *section_ends)
        found = (yield from text.until(marks, _drop)) if section_ends else marker
        while found is not None and found not in section_ends:
            body = yield from self._body(found, text)
            _pass_on(self.read_calls(body, schemas), sink)
            if not section_ends:
                return
            found = yield from text.until(marks, _drop)

    def _body(self, call: str, text: TextScanner) -> Reading[str]:
        """Up to the first end that leaves the body whole, or else to the first end there is."""
        ends = tuple(end for start, end in self.markers if start == call)
        body: list[str] = []
        shortest: str | None = None
        while True:
            found = yield from text.until(ends, body.append)
            so_far = "".join(body)
            if found is None:
                if shortest is None:
                    raise TextCut
                text.go_back()
                return shortest
            if self.is_whole(so_far):
                text.forget()
                return so_far
            if shortest is None:
                shortest = so_far
                text.keep()
            body.append(found)


@dataclass(frozen=True, slots=True)
class BareCalls:
    """Calls that nothing marks but that the answer begins with them, as Llama's: `{"name": …, "parameters": {…}}`,
    several with `;` or white space between them, or `[name(key="value"), …]`. What turns out to be none is said."""

    starts: Sequence[str] = ("<|python_tag|>", "<|python_start|>")

    def read(self, marker: str, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[None]:
        while (yield from self.try_call(text, sink, schemas)):
            pass

    def try_call(self, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[bool]:
        """Read a call, if one comes next; else the text is where it was."""
        before = sink.calls
        text.keep()
        try:
            found = yield from self._call(text, sink, schemas)
        except TextCut:
            if sink.calls > before:
                raise
            found = False
        if found:
            text.forget()
        else:
            text.go_back()
        return found

    def _call(self, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[bool]:
        next_one = yield from text.skip_space()
        if sink.calls and next_one in (";", ","):
            yield from text.accept(next_one)
            next_one = yield from text.skip_space()
        if next_one == "{":
            before = sink.calls
            yield from read_json_call(text, sink, offered=schemas)
            return sink.calls > before
        if next_one == "[":
            body = yield from _balanced(text)
            calls = read_pythonic(body, schemas)
            if calls is not None and all(call.name in schemas for call in calls):
                _pass_on(calls, sink)
                return True
        return False


class _NoCalls:
    """Reads nothing: for models that call no tools, and answers whose calls nobody wants apart."""

    starts: Sequence[str] = ()

    def read(self, marker: str, text: TextScanner, sink: OutputSink, schemas: Schemas) -> Reading[None]:
        raise AssertionError("no marker leads here")


NO_CALLS: CallFormat = _NoCalls()


def _drop(_: str) -> None:
    pass


def _pass_on(calls: Sequence[WholeCall] | None, sink: OutputSink) -> None:
    for call in calls or ():
        sink.begin_call(call.name)
        sink.argue(json.dumps(call.arguments, ensure_ascii=False))
        sink.end_call()


def _balanced(text: TextScanner) -> Reading[str]:
    """A text in brackets, in Python's notation, with them."""
    held: list[str] = []
    brackets = _Brackets()

    def take(piece: str) -> int | None:
        used = brackets.take(piece)
        held.append(piece[:used])
        return used

    yield from text.take(take)
    return "".join(held)


class _Brackets:
    """Finds where brackets close that a text begins with, whatever its strings have in them."""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def take(self, piece: str) -> int | None:
        for index, char in enumerate(piece):
            if self._escaped:
                self._escaped = False
            elif self._quote:
                self._escaped = char == "\\"
                if char == self._quote:
                    self._quote = ""
            elif char in "\"'":
                self._quote = char
            elif char in "([{":
                self._depth += 1
            elif char in ")]}":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None
