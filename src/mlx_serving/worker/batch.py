"""A decode batch of one model: rows join, take one token a step together, and leave.

A step launches the next forward pass before the host looks at the tokens of the one before, so the host's work
(detokenizing, stop strings, frames) happens while the device computes. A row that turns out to be finished has then
been computed once too often; that token is dropped with the row.

Rows that follow a grammar need their last token before the next can be chosen. Where there are any, the host reads the
tokens and finds out what the grammars allow while the forward pass runs, and launches the sampling behind it. Where a
grammar leaves no choice, its row is fed what must come in one pass (`forced_runs.py`).

Rows for which tokens are drafted are fed these behind their next one, and keep of what is drawn there as much as agrees
(`speculation/`). How much that is, and so how long such a row has become, is known when it is read: the step after a
check reads first, and so does one where a draft is likely. All others are launched ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_serving.errors import InvalidRequest
from mlx_serving.worker.batch_slots import BatchSlots, Row
from mlx_serving.worker.forced_runs import ForcedRuns
from mlx_serving.worker.kv_cache import RowLengths
from mlx_serving.worker.sampling.logprobs import RowLogprobs
from mlx_serving.worker.sampling.sampler import BatchSampler, Launched
from mlx_serving.worker.speculation.speculator import Speculator
from mlx_serving.worker.speculation.verification import Verification

Place = Callable[[RowLengths], Mapping[str, Any]]
"""What a model is to be told of where the rows of a step are."""


class Token(NamedTuple):
    """The token that a sequence got, and its log-probabilities if it asked for them. `is_last`: its grammar is
    complete. `error`: why its grammar does not allow the token, or cannot be followed further, or that nothing was left
    to choose. `is_extra`: it was fed in the same pass as the one before it."""

    stream_id: str
    token_id: int
    logprobs: RowLogprobs | None = None
    is_last: bool = False
    error: InvalidRequest | None = None
    is_extra: bool = False


class _Unread(NamedTuple):
    """What was launched: the rows, and what they get. With a `check`, launched at a time in monotonic seconds, some of
    that is thrown away."""

    rows: list[Row]
    launched: Launched
    check: Verification | None = None
    at: float = 0.0


class DecodeBatch:
    """`slots` hold its rows, which join and leave there (see `BatchSlots` for `shared`); a row that is to have nothing
    of what is under way either leaves here. `runs`: whether rows may be fed several tokens at once. `place` is for a
    model that does not find out from its caches where the rows are. With a `speculator` tokens are drafted for those
    who ask.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shared: bool,
        runs: bool = False,
        place: Place | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        self._runs = runs
        self._speculator = speculator
        self._model: Any = model
        self._place = place
        self.slots = BatchSlots(shared=shared)
        self._sampler: BatchSampler | None = None
        self._unread: _Unread | None = None

    @property
    def is_done(self) -> bool:
        """Nobody is here and nothing is to be read."""
        return not self.slots.rows and self._unread is None

    def leave(self, stream_id: str) -> None:
        """Drop a sequence, and what was launched for it; unknown ids are ignored."""
        if self._unread is not None:
            for row in self._unread.rows:
                row.gone = row.gone or row.stream_id == stream_id
        self.slots.leave(stream_id)

    def step(self, ending: Collection[str] = ()) -> list[Token]:
        """Launch a forward pass for every row, then read the tokens of the launch before.

        Rows in `ending` need no further token after this launch: they leave the batch, and their last token is read
        with the others'.
        """
        slots = self.slots
        if not slots.rows:
            return self.drain()
        slots.close_gaps()
        tokens, drafts = self._draft()
        if drafts is not None:
            return [*tokens, *self._check(drafts, ending)]
        runs = self._forced()
        logits = self._forward(runs)
        if runs is not None:
            mx.async_eval(logits)  # pyright: ignore[reportUnknownMemberType]  untyped in MLX's stub
            tokens = [*tokens, *self.drain(), *self._take(runs.behind)]
        if self._sampler is None or slots.changed:
            slots.changed = False
            self._sampler = BatchSampler([row.sampling for row in slots.rows], logits.shape[-1])
        if runs is None and self._sampler.follows:
            mx.async_eval(logits)  # pyright: ignore[reportUnknownMemberType]  untyped in MLX's stub
            tokens += self.drain()
        launched = self._sampler(logits, slots.inputs)
        launched.start()
        earlier, self._unread, slots.inputs = self._unread, _Unread(list(slots.rows), launched), launched.tokens
        for stream_id in ending:
            slots.leave(stream_id)
        return tokens or self._read(earlier)

    def drain(self) -> list[Token]:
        """Read what was launched, without launching anything."""
        earlier, self._unread = self._unread, None
        return self._read(earlier)

    @property
    def is_checking(self) -> bool:
        """Whether a draft is launched: how many tokens its row gets is not known before `drain`."""
        return self._unread is not None and self._unread.check is not None

    @property
    def _is_read(self) -> bool:
        """Whether reading first costs nothing."""
        return self._unread is None or self.is_checking

    def _forced(self) -> ForcedRuns | None:
        return ForcedRuns.of([row.sampling for row in self.slots.rows]) if self._runs else None

    def _draft(self) -> tuple[list[Token], list[list[int]] | None]:
        """A draft for each row, None where nobody has one; and what was read first, where that is worth it."""
        if self._speculator is None:
            return [], None
        rows = [(row.stream_id, row.sampling) for row in self.slots.rows]
        if not (self._is_read or self._speculator.is_likely(rows)):
            return [], None
        return self.drain(), self._speculator.propose(rows)

    def _check(self, drafts: list[list[int]], ending: Collection[str]) -> list[Token]:
        """Launch a pass that checks a draft of each row, which may be empty. Everything before it was read."""
        slots, at = self.slots, time.monotonic()
        check = Verification([row.sampling for row in slots.rows], drafts, self._forced())
        fed = check.runs.feed(slots.inputs)
        slots.lengths.widen(check.runs.width)
        logits = cast(mx.array, self._model(fed, cache=slots.caches, **self._told()))
        slots.lengths.advance(check.certain)
        tokens = self._take(check.forced)
        launched = BatchSampler(check.sampled, logits.shape[-1])(check.pick(logits), check.pick(fed))
        launched.start()
        self._unread = _Unread(list(slots.rows), launched, check, at)
        for stream_id in ending:
            slots.leave(stream_id)
        return tokens

    def _read(self, earlier: _Unread | None) -> list[Token]:
        """Waits for the device."""
        if earlier is None:
            return []
        drawn = earlier.launched.read()
        if earlier.check is not None:
            if self._speculator is not None:
                tokens = len(earlier.rows) * earlier.check.runs.width
                self._speculator.cost.learn(tokens, time.monotonic() - earlier.at)
            return self._settle(earlier.rows, earlier.check, drawn)
        return [
            _taken(row, token, logprobs)
            for row, (token, logprobs) in zip(earlier.rows, drawn, strict=True)
            if not row.gone
        ]

    def _settle(
        self, rows: list[Row], check: Verification, drawn: Sequence[tuple[int, RowLogprobs | None]]
    ) -> list[Token]:
        """Take what was right. What was computed for the rest of a draft is behind the end of its row."""
        slots, draws = self.slots, check.agreed(drawn)
        tokens: list[Token] = []
        places = {id(row): index for index, row in enumerate(slots.rows)}
        grown = [0] * len(slots.rows)
        inputs = cast("list[int]", slots.inputs.tolist())
        for row, own in zip(rows, draws, strict=True):
            if own.drafted:
                row.sampling.position += len(own.tokens)
            if not row.gone:
                tokens += [
                    _taken(row, token, logprobs, is_extra=place > 0)
                    for place, (token, logprobs) in enumerate(own.tokens)
                ]
            place = places.get(id(row))
            if place is not None:  # else it has left
                grown[place] = own.accepted
                inputs[place] = own.tokens[-1][0]
        if slots.rows:
            slots.inputs = mx.array(inputs, dtype=mx.uint32)
            slots.lengths.advance(grown)
        if self._speculator is not None:
            kept = [(row, own) for row, own in zip(rows, draws, strict=True) if not row.gone]
            self._speculator.learn([(row.stream_id, row.sampling) for row, _ in kept], [own for _, own in kept])
        return tokens

    def _forward(self, runs: ForcedRuns | None) -> mx.array:
        """The logits of each row, [rows, vocabulary]; the slots.' inputs are then what was fed last."""
        slots, caches = self.slots, self.slots.caches
        if runs is None:
            slots.lengths.widen(1)
            logits = cast(mx.array, self._model(slots.inputs[:, None], cache=caches, **self._told()))[:, -1, :]
            slots.lengths.advance()
            return logits
        fed = runs.feed(slots.inputs)
        slots.lengths.widen(runs.width)
        logits = runs.last(cast(mx.array, self._model(fed, cache=caches, **self._told())))
        slots.lengths.advance(runs.counts)
        slots.inputs = runs.last(fed)
        return logits

    def _told(self) -> Mapping[str, Any]:
        return {} if self._place is None else self._place(self.slots.lengths)

    def _take(self, forced: Sequence[list[int]]) -> list[Token]:
        """What rows were fed without having drawn it: as if they had, which their samplers then follow from."""
        tokens: list[Token] = []
        for row, behind in zip(self.slots.rows, forced, strict=True):
            row.sampling.position += len(behind)
            tokens += [_taken(row, token, is_extra=True) for token in behind]
        self._sampler = None
        return tokens


def _taken(row: Row, token: int, logprobs: RowLogprobs | None = None, *, is_extra: bool = False) -> Token:
    if token == 0 and row.sampling.rules.banned and row.sampling.forbids(token):
        count = len(row.sampling.drawn)
        words = f"bad_words and what else is banned leave no token to choose, after {count} tokens"
        return Token(row.stream_id, token, error=InvalidRequest(words, field="bad_words", given=count))
    row.sampling.drawn.append(token)
    matcher = row.sampling.matcher
    if matcher is None:
        return Token(row.stream_id, token, logprobs, is_extra=is_extra)
    matcher.advance(token)
    return Token(row.stream_id, token, logprobs, matcher.is_complete, matcher.error, is_extra)
