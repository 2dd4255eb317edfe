"""One stream on the worker's side: tokens go in, what may be shown comes out, until it ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlx_serving.core.generation import FinishReason
from mlx_serving.core.text import IncrementalDetokenizer, StopMatcher
from mlx_serving.errors import EngineError, InvalidRequest
from mlx_serving.wire.jsonrpc import rpc_error
from mlx_serving.wire.notifications import Completed, Failed, Row, Stats, TokenLogprobs
from mlx_serving.worker.tokenizing import Decode

_CONTEXT_TAIL = 8  # prompt tokens that the detokenizer sees, so that the first word keeps its space


@dataclass(frozen=True, slots=True)
class Ending:
    """When a sequence is over: after `max_tokens`, at a token of `token_ids`, at one of the strings `stop` unless that
    ends within the first `min_tokens`."""

    max_tokens: int
    token_ids: Collection[int]
    stop: tuple[str, ...]
    min_tokens: int = 0


class RunningSequence:
    def __init__(
        self, stream_id: str, prompt: Sequence[int], ending: Ending, decode: Decode, started_at: float
    ) -> None:
        self.stream_id = stream_id
        self._prompt_tokens = len(prompt)
        self._ending = ending
        self._detokenizer = IncrementalDetokenizer(decode, prompt_tail=tuple(prompt[-_CONTEXT_TAIL:]))
        self._stops = StopMatcher(ending.stop)
        self._generated = 0
        self._replayed = 0
        self._started_at = started_at
        self._first_token_at: float | None = None
        self._cached: int | None = None
        self._told = False

    def begin(self, cached: int) -> None:
        """It gets caches that hold its first `cached` tokens. Only the first time counts, and its prompt."""
        if self._cached is None:
            self._cached = min(cached, self._prompt_tokens)

    def untold(self) -> int | None:
        """How many tokens of its prompt were cached, the first time; None afterwards."""
        if self._told:
            return None
        self._told = True
        return self._cached or 0

    def accept(self, token_id: int, now: float, logprobs: TokenLogprobs | None = None, *, is_last: bool = False) -> Row:
        """Take the next token at time `now` (seconds, monotonic). A row with an `end` is the last.

        `logprobs` are the token's, and go out with it. `is_last`: with it the answer is whole.
        """
        self._generated += 1
        if self._first_token_at is None:
            self._first_token_at = now
        if token_id in self._ending.token_ids:
            text, _ = self._feed(self._detokenizer.finish())
            return Row(self.stream_id, [], text + self._stops.finish(), self._completed(FinishReason.STOP, now))
        named = None if logprobs is None else [logprobs]
        text, stopped = self._feed(self._detokenizer.add(token_id))
        if stopped:
            return Row(self.stream_id, [token_id], text, self._completed(FinishReason.STOP, now), named)
        if self._generated < self._ending.max_tokens and not is_last:
            return Row(self.stream_id, [token_id], text, None, named)
        rest, _ = self._feed(self._detokenizer.finish())
        text += rest + self._stops.finish()
        reason = FinishReason.STOP if self._stops.stopped or is_last else FinishReason.LENGTH
        return Row(self.stream_id, [token_id], text, self._completed(reason, now), named)

    def replay(self, token_ids: Sequence[int]) -> None:
        """Take tokens whose text its reader has already, before any other. Raises `InvalidRequest` when they end it."""
        for count, token_id in enumerate(token_ids, start=1):
            if self.accept(token_id, self._started_at).end is not None:
                raise InvalidRequest(
                    f"The answer ends after {count} of the {len(token_ids)} tokens that were delivered",
                    field="delivered",
                    limit=count - 1,
                    given=len(token_ids),
                )
        self._replayed = self._generated
        self._first_token_at = None

    def aborted(self, now: float) -> Row:
        return Row(self.stream_id, [], "", self._completed(FinishReason.ABORT, now))

    def failed(self, error: EngineError) -> Row:
        return Row(self.stream_id, [], "", Failed(rpc_error(error)))

    def _feed(self, text: str) -> tuple[str, bool]:
        return self._stops.feed(text, ignore=self._generated <= self._ending.min_tokens)

    def _completed(self, reason: FinishReason, now: float) -> Completed:
        first = self._first_token_at if self._first_token_at is not None else now
        after_first = now - first
        return Completed(
            reason,
            Stats(
                prompt_tokens=self._prompt_tokens,
                tokens_generated=self._generated,
                tokens_per_second=(self._generated - self._replayed - 1) / after_first if after_first > 0 else 0.0,
                time_to_first_token=first - self._started_at,
                total_time=now - self._started_at,
                cached_tokens=self._cached or 0,
            ),
            self._stops.stop,
        )
