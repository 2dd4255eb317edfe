"""Log-probabilities of the tokens that came and of the likeliest ones, for the rows that ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from mlx_serving.wire.notifications import Candidate, TokenLogprobs
from mlx_serving.worker.sampling.row import SamplingRow
from mlx_serving.worker.token_bytes import TokenBytes


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Natural logarithms of probabilities: of the token that came, and of the likeliest ones, best first, by id."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchedLogprobs:
    """What a launch computes for the rows at the places `index`: `counts` of the likeliest tokens each.

    `chosen` [rows, 1]; `top_ids` and `top` [rows, most], in no order.
    """

    index: Sequence[int]
    counts: Sequence[int]
    chosen: mx.array
    top_ids: mx.array
    top: mx.array

    def read(self) -> dict[int, RowLogprobs]:
        """By the row's place in the batch. Waits for the device."""
        chosen = cast(list[list[float]], self.chosen.tolist())
        ids, top = cast(list[list[int]], self.top_ids.tolist()), cast(list[list[float]], self.top.tolist())
        return {
            index: RowLogprobs(chosen[place][0], _best(ids[place], top[place], self.counts[place]))
            for place, index in enumerate(self.index)
        }


def name(token_id: int, logprobs: RowLogprobs, token_bytes: TokenBytes) -> TokenLogprobs:
    """The log-probabilities of the token that came, as the parent wants to know them."""

    def candidate(token_id: int, logprob: float) -> Candidate:
        raw, special = token_bytes(token_id)
        return Candidate(token_id, logprob, raw, special)

    return TokenLogprobs(candidate(token_id, logprobs.chosen), [candidate(*each) for each in logprobs.top])


class LogprobSampler:
    """Reads the model's own logits, before anything is done to them."""

    def __init__(self, rows: Sequence[SamplingRow], vocabulary: int) -> None:
        asked = [(index, row.sampling.logprobs) for index, row in enumerate(rows)]
        self._counts = {index: count for index, count in asked if count is not None}
        self._most = min(max(self._counts.values(), default=0), vocabulary)
        self._index = mx.array(list(self._counts))

    def __call__(self, logits: mx.array, tokens: mx.array) -> LaunchedLogprobs | None:
        """[rows, vocabulary] and the tokens that came, [rows]."""
        if not self._counts:
            return None
        asked = logits[self._index].astype(mx.float32)
        total = mx.logsumexp(asked, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(asked, tokens[self._index][:, None], axis=-1) - total
        ids = _likeliest(asked, self._most)
        top = mx.take_along_axis(asked, ids, axis=-1) - total
        return LaunchedLogprobs(list(self._counts), list(self._counts.values()), chosen, ids, top)


def _likeliest(logits: mx.array, count: int) -> mx.array:
    """[rows, count] ids, in no order."""
    if count == 0:
        return mx.zeros((logits.shape[0], 0), dtype=mx.uint32)
    # The bits of a float in the order of the numbers, with NaN in a place of its own: the partition needs an order.
    bits = logits.view(mx.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return mx.argpartition(ordered, -count, axis=-1)[:, -count:]


def _best(ids: Sequence[int], logprobs: Sequence[float], count: int) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(zip(ids, logprobs, strict=True), key=lambda entry: (-entry[1], entry[0]))[:count])
