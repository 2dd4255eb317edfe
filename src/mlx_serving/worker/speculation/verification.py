"""Checking drafts: what a row would have drawn behind each drafted token, and how far that agrees.

Behind each token of a draft stands a row of its own for the sampler: the sequence as it would be had it drawn the draft
so far. Draws depend on seed, position and what came before alone, so each is exactly what one step at a time would give
if all before it is right; and what comes after the first wrong one is thrown away. So whatever a row asks of its
sampler holds here as well, and an answer is the same, drafted or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

import mlx.core as mx

from mlx_serving.worker.forced_runs import ForcedRuns
from mlx_serving.worker.sampling.forced_tokens import ForcedTokens
from mlx_serving.worker.sampling.logprobs import RowLogprobs
from mlx_serving.worker.sampling.row import SamplingRow


class Draws(NamedTuple):
    """What a row got: tokens with their log-probabilities, of which all but the last were drafted."""

    tokens: Sequence[tuple[int, RowLogprobs | None]]
    drafted: int

    @property
    def accepted(self) -> int:
        return len(self.tokens) - 1


class Verification:
    """Of one step, in which some rows are fed `drafts` behind their next token, and others what `forced` says."""

    def __init__(self, rows: Sequence[SamplingRow], drafts: Sequence[list[int]], forced: ForcedRuns | None) -> None:
        self.drafts = drafts
        known: Sequence[list[int]] = [[] for _ in rows] if forced is None else forced.behind
        self.runs = ForcedRuns([draft or tokens for draft, tokens in zip(drafts, known, strict=True)])
        self.certain = [1 if draft else count for draft, count in zip(drafts, self.runs.counts, strict=True)]
        """For each row, how many of the tokens that it is fed are its own whatever is drawn."""
        self.forced = [[] if draft else tokens for draft, tokens in zip(drafts, known, strict=True)]
        """What rows are fed that needs no check."""
        self._rows = rows

    @property
    def sampled(self) -> list[SamplingRow]:
        """The rows to sample, those behind drafted tokens among them; to be asked for when what was forced is taken."""
        return [
            each
            for row, draft in zip(self._rows, self.drafts, strict=True)
            for each in ([behind(row, draft[:count]) for count in range(len(draft) + 1)] if draft else [row])
        ]

    def pick(self, of_tokens: mx.array) -> mx.array:
        """[rows, width, …] -> [sampled, …]: what belongs to the tokens behind which something is drawn."""
        width = self.runs.width
        places = [
            index * width + column
            for index, (draft, count) in enumerate(zip(self.drafts, self.runs.counts, strict=True))
            for column in (range(count) if draft else [count - 1])
        ]
        return mx.flatten(of_tokens, 0, 1)[mx.array(places)]

    def agreed(self, drawn: Sequence[tuple[int, RowLogprobs | None]]) -> list[Draws]:
        """For each row what it has really drawn, of what all `sampled` have."""
        rest = iter(drawn)
        agreed: list[Draws] = []
        for draft in self.drafts:
            own = [next(rest) for _ in range(len(draft) + 1)]
            right = len(list(takewhile(lambda pair: pair[0] == pair[1][0], zip(draft, own, strict=False))))
            agreed.append(Draws(own[: right + 1], len(draft)))
        return agreed


def is_checkable(row: SamplingRow) -> bool:
    """Whether what may come behind a drafted token is known: a grammar, or a budget of reasoning, must see what was
    drawn before."""
    return row.matcher is None and not ForcedTokens.is_asked(row)


def behind(row: SamplingRow, tokens: list[int]) -> SamplingRow:
    """The sequence as it would be had it drawn these tokens."""
    return replace(row, drawn=[*row.drawn, *tokens], position=row.position + len(tokens))
