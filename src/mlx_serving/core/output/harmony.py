"""gpt-oss: messages with headers that say who speaks to whom, on which channel."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlx_serving.core.output.json_calls import stream_arguments
from mlx_serving.core.output.parsed_output import IdStyle, OutputSink
from mlx_serving.core.output.text_scanner import Reading, TextScanner
from mlx_serving.core.output.tool_arguments import Schemas

_START, _MESSAGE, _CHANNEL = "<|start|>", "<|message|>", "<|channel|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_HEADER_ENDS = (_MESSAGE, _START, *_ENDS)
_CALL_ENDS = (_START, *_ENDS)
_BODY_ENDS = (_START, "<|end|>", "<|return|>")
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyFormat:
    """`<|start|>assistant to=functions.name<|channel|>commentary<|message|>{…}<|call|>`: what goes to a function is a
    call, what is on the channel `analysis` is thought, on `final` and `commentary` said. The rest goes to nobody here.
    """

    trims: bool = False
    ids: IdStyle = "long"
    think_starts: Sequence[str] = ("<|channel|>analysis<|message|>",)
    think_ends: Sequence[str] = ("<|end|>",)
    answer_start: str = "<|start|>assistant<|channel|>final<|message|>"

    def __init__(self, *, apart: bool = True) -> None:
        """`apart`: calls are wanted apart. Else they belong to no part."""
        self._apart = apart

    def read(self, text: TextScanner, sink: OutputSink, schemas: Schemas, *, thinking: bool) -> Reading[None]:
        if thinking:
            yield from self._body("analysis", "", text, sink)
            sink.break_thought()
        while True:
            header: list[str] = []
            found = yield from text.until(_HEADER_ENDS, header.append)
            if found is None:
                return
            if found == _MESSAGE:
                yield from self._body(*_addressed("".join(header)), text, sink)
                sink.break_thought()

    def _body(self, channel: str, recipient: str, text: TextScanner, sink: OutputSink) -> Reading[None]:
        if recipient.startswith("functions.") and self._apart and (yield from text.skip_space()) == "{":
            yield from stream_arguments(text, sink, recipient.removeprefix("functions."))
        if recipient:
            yield from text.until(_CALL_ENDS, _drop)
            return
        match channel:
            case "analysis":
                yield from text.until(_BODY_ENDS, sink.think)
            case "final" | "commentary":
                yield from text.until(_BODY_ENDS, sink.say)
            case _:
                yield from text.until(_BODY_ENDS, _drop)


def _addressed(header: str) -> tuple[str, str]:
    """The channel and the recipient that a header names; empty for none."""
    recipient, channel = _RECIPIENT.search(header), _CHANNEL_NAME.search(header)
    return channel.group(1) if channel else "", recipient.group(1) if recipient else ""


def _drop(_: str) -> None:
    pass
