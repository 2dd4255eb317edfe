"""The tokens that rows of a batch are fed without asking the model: those that their grammars leave no choice of."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_serving.core.forced_runs import MAX_RUN, width
from mlx_serving.worker.prompts import PASS_TOKENS
from mlx_serving.worker.sampling.constraints import MinTokens
from mlx_serving.worker.sampling.forced_tokens import ForcedTokens
from mlx_serving.worker.sampling.row import SamplingRow

_PADDING = 0


class ForcedRuns:
    """Of one step: for each row the tokens that it is fed `behind` the one that it would be fed anyway."""

    def __init__(self, behind: Sequence[list[int]]) -> None:
        self.behind = behind
        self.counts = [1 + len(tokens) for tokens in behind]
        self.width = max(self.counts)

    @staticmethod
    def of(rows: Sequence[SamplingRow]) -> ForcedRuns | None:
        """What to feed these rows; None where it is one token each."""
        known = [_behind(row) for row in rows]
        if not any(known):
            return None
        bystanders = any(row.matcher is None for row in rows)
        most = width([1 + len(tokens) for tokens in known], PASS_TOKENS, bystanders=bystanders) - 1
        return ForcedRuns([tokens[:most] for tokens in known]) if most else None

    def feed(self, inputs: mx.array) -> mx.array:
        """[rows] -> [rows, width], padded at the end."""
        padded = [tokens + [_PADDING] * (self.width - 1 - len(tokens)) for tokens in self.behind]
        return mx.concatenate([inputs[:, None], mx.array(padded, dtype=inputs.dtype)], axis=1)

    def last(self, of_tokens: mx.array) -> mx.array:
        """[rows, width, …] -> [rows, …]: of each row what belongs to the last token that it was fed."""
        return of_tokens[mx.arange(len(self.counts)), mx.array(self.counts) - 1]


def _behind(row: SamplingRow) -> list[int]:
    """What is known to follow the token that the row is fed next.

    That is the last of its prompt and answer; or it was launched and not read yet, and is the first that is forced.
    Nothing is known of a row that wants the log-probabilities of what it gets, or whose other rules could be against
    what its grammar says.
    """
    if row.matcher is None or not _is_free(row):
        return []
    known = row.matcher.forced()[row.position - len(row.drawn) :]
    # The model is asked for the last token at least, and the scheduler is to see that one come.
    room = MAX_RUN if row.max_tokens is None else row.max_tokens - 2 - row.position
    return known[: max(0, min(MAX_RUN - 1, room))]


def _is_free(row: SamplingRow) -> bool:
    asked = row.sampling
    is_ruled = asked.banned_token_ids or asked.allowed_token_ids is not None or row.rules.banned
    return not (asked.logprobs is not None or is_ruled or MinTokens.is_asked(row) or ForcedTokens.is_asked(row))
