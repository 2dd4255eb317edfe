"""Choosing the next token of every row of a batch, in one go.

The order is the field's: bias, penalties and bans, what grammars allow, temperature, then top-k, top-p and min-p,
typical-p, XTC, then one draw. Parameters are arrays, made anew only when the membership of the batch changes. Rows that
go through the same stages go through them together, and no row goes through a stage that it does not ask for: what a
row gets does not depend on what the others ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import mlx.core as mx

from mlx_serving.worker.grammar.mask import StructureMask
from mlx_serving.worker.sampling.constraints import AllowedTokens, BannedSequences, Bias, MinTokens
from mlx_serving.worker.sampling.draw import draw
from mlx_serving.worker.sampling.filters import LikeliestFilter, TypicalFilter, XtcFilter
from mlx_serving.worker.sampling.forced_tokens import ForcedTokens
from mlx_serving.worker.sampling.logits import LogitEdit, column
from mlx_serving.worker.sampling.logprobs import LaunchedLogprobs, LogprobSampler, RowLogprobs
from mlx_serving.worker.sampling.penalties import AnswerPenalties, RepetitionPenalty
from mlx_serving.worker.sampling.randomness import uniform
from mlx_serving.worker.sampling.row import SamplingRow

_EDITS: Sequence[type[LogitEdit]] = (
    Bias,
    RepetitionPenalty,
    AnswerPenalties,
    AllowedTokens,
    MinTokens,
    BannedSequences,
    ForcedTokens,
    StructureMask,
)
_FILTERS = (LikeliestFilter, TypicalFilter, XtcFilter)

_Stages: TypeAlias = tuple[bool, ...]
"""Whether a row is drawn, and which of `_FILTERS` it asks for."""


@dataclass(frozen=True, slots=True)
class Launched:
    """What a step was asked to compute: `tokens` [rows] uint32, and log-probabilities if a row wants them."""

    tokens: mx.array
    logprobs: LaunchedLogprobs | None

    def start(self) -> None:
        """Have the device compute it; returns at once."""
        asked = self.logprobs
        arrays = [self.tokens] if asked is None else [self.tokens, asked.chosen, asked.top_ids, asked.top]
        mx.async_eval(*arrays)  # pyright: ignore[reportUnknownMemberType]  untyped in MLX's stub

    def read(self) -> list[tuple[int, RowLogprobs | None]]:
        """Of every row its token, and its log-probabilities if it asked. Waits for the device."""
        logprobs = {} if self.logprobs is None else self.logprobs.read()
        return [(token, logprobs.get(index)) for index, token in enumerate(cast(list[int], self.tokens.tolist()))]


class BatchSampler:
    """The sampler of one membership of a batch, for logits of `vocabulary` entries."""

    def __init__(self, rows: Sequence[SamplingRow], vocabulary: int) -> None:
        self._rows = rows
        self._edits = _edits_of(rows, vocabulary)
        self._groups = _groups_of(rows, vocabulary)
        # Groups give their tokens one after the other: from there back to the order of the rows.
        order = [index for group in self._groups for index in group.index]
        self._back = mx.array([order.index(index) for index in range(len(rows))])
        self._logprobs = LogprobSampler(rows, vocabulary)

    @property
    def follows(self) -> bool:
        """Whether it needs the tokens of the launch before on the host: what grammars and budgets of reasoning allow
        depends on them."""
        return any(row.matcher is not None or ForcedTokens.is_asked(row) for row in self._rows)

    def __call__(self, logits: mx.array, inputs: mx.array) -> Launched:
        """[rows, vocabulary] and the tokens that were fed, [rows] -> the next tokens, not yet computed."""
        edited = logits.astype(mx.float32) if self._edits else logits
        for edit in self._edits:
            edited = edit.apply(edited, inputs)
        if len(self._groups) == 1:
            tokens = self._groups[0].choose(edited)
        else:
            tokens = mx.concatenate([group.choose(edited[group.places]) for group in self._groups])[self._back]
        for row in self._rows:
            row.position += 1
        return Launched(tokens, self._logprobs(logits, tokens))


class _Group:
    """Rows that go through the same stages, `index` their places in the batch."""

    def __init__(self, index: Sequence[int], rows: Sequence[SamplingRow], stages: _Stages, vocabulary: int) -> None:
        self.index = index
        self.places = mx.array(list(index))
        self._rows = rows
        self._is_drawn, *filtered = stages
        self._temperatures = column([row.sampling.temperature for row in rows])
        self._filters = [kind(rows, vocabulary) for kind, asked in zip(_FILTERS, filtered, strict=True) if asked]

    def choose(self, logits: mx.array) -> mx.array:
        """[rows, vocabulary] -> tokens, [rows]."""
        if not self._is_drawn:
            return mx.argmax(logits, axis=-1)
        shares = mx.softmax(logits.astype(mx.float32) / self._temperatures, axis=-1)
        for one in self._filters:
            shares = one.apply(shares)
        return draw(shares, column([uniform(row.seed, row.position) for row in self._rows]))


def _edits_of(rows: Sequence[SamplingRow], vocabulary: int) -> list[LogitEdit]:
    edits: list[LogitEdit] = []
    for kind in _EDITS:
        asking = [(index, row) for index, row in enumerate(rows) if kind.is_asked(row)]
        if asking:
            edits.append(kind(asking, vocabulary))
    return edits


def _groups_of(rows: Sequence[SamplingRow], vocabulary: int) -> list[_Group]:
    by_stages: dict[_Stages, list[int]] = {}
    for index, row in enumerate(rows):
        drawn = row.is_sampled
        stages = (drawn, *(drawn and kind.is_asked(row) for kind in _FILTERS))
        by_stages.setdefault(stages, []).append(index)
    return [_Group(index, [rows[i] for i in index], stages, vocabulary) for stages, index in by_stages.items()]
