"""A stream whose output is taken apart: reasoning and calls leave apart from the text."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mlx_serving.core.generation import FinishReason
from mlx_serving.core.output.output_parser import OutputParser
from mlx_serving.core.output.parsed_output import Parts
from mlx_serving.wire.notifications import Aside, CallPiece, Completed, Row, TokenLogprobs
from mlx_serving.worker.sequence import Ending, RunningSequence
from mlx_serving.worker.tokenizing import Decode


class ParsedSequence(RunningSequence):
    """`decode` gives the markers of the model's format, too. Calls of tools that end a turn are why it ended."""

    def __init__(
        self,
        stream_id: str,
        prompt: Sequence[int],
        ending: Ending,
        decode: Decode,
        started_at: float,
        parser: OutputParser,
    ) -> None:
        super().__init__(stream_id, prompt, ending, decode, started_at)
        self._parser = parser

    def accept(self, token_id: int, now: float, logprobs: TokenLogprobs | None = None, *, is_last: bool = False) -> Row:
        row = super().accept(token_id, now, logprobs, is_last=is_last)
        parts = self._parser.feed(row.text)
        end = row.end
        if end is None and self._parser.is_done:
            end = self._completed(FinishReason.TOOL_CALLS, now)
        elif isinstance(end, Completed):
            parts = _joined(parts, self._parser.finish())
            if end.finish_reason is FinishReason.STOP and self._parser.calls:
                end = msgspec.structs.replace(end, finish_reason=FinishReason.TOOL_CALLS)
        aside = None
        if parts.reasoning or parts.tool_calls:
            calls = [CallPiece(call.index, call.id, call.name, call.arguments) for call in parts.tool_calls]
            aside = Aside(parts.reasoning, calls)
        return msgspec.structs.replace(row, text=parts.text, end=end, aside=aside)


def _joined(first: Parts, second: Parts) -> Parts:
    return Parts(first.text + second.text, first.reasoning + second.reasoning, (*first.tool_calls, *second.tool_calls))
