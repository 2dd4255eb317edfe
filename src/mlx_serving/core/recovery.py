"""How a stream goes on after its worker died or its model was replaced: what was delivered, what is asked next, when.

The tokens that were delivered become part of what the next worker, or the next version of the model, is given, so it
continues at the same place of the same random sequence; its reader sees a pause. Tokens are kept in a list that grows:
one entry a token, once. Vectors are each computed by itself: what is asked next are those that were not delivered.
A model that drafted for the stream is not waited for: the stream goes on without it if need be.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_serving.core.generation import Delta, EmbeddingInputs, GenerationRequest, GenerationStats
from mlx_serving.errors import CircuitOpen, EngineError, ModelNotLoaded, ModelReplaced, Overloaded, WorkerDied

_MAX_VANISHED_MODELS = 3


class Recovery:
    """One request over all the workers that serve it, for its shell. Times are monotonic seconds."""

    def __init__(self, request: GenerationRequest, seed: int, now: float) -> None:
        """`seed` is for a request that brings none: every worker must draw the same numbers."""
        if request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=seed))
        if request.delivered:
            request = replace(request, speculation=request.speculation.if_there())
        self._request = request
        self._tokens: list[int] = list(request.delivered)
        self._places: set[int] = set()  # of inputs whose vectors were delivered
        self._input_tokens = 0
        self._opened_at = now
        self._first_token_at: float | None = None
        # Of what was delivered before, nobody knows what it cost.
        self._cached_tokens: int | None = 0 if request.delivered else None
        self._accepted = False
        self._vanished = 0
        self._moved = False  # whether an attempt was lost that may have delivered something
        self.losses = 0

    @property
    def delivered(self) -> int:
        """Tokens, or vectors, that its reader has."""
        return len(self._tokens) + len(self._places)

    @property
    def accepted(self) -> bool:
        """Whether any worker has accepted it."""
        return self._accepted

    def next_request(self) -> GenerationRequest:
        """What to ask of the worker that is there now."""
        if not self._moved:
            return self._request
        inputs = self._request.prompt
        if isinstance(inputs, EmbeddingInputs):
            inputs = replace(inputs, delivered=inputs.delivered | self._places)
            return replace(self._request, prompt=inputs, fork_of=None)
        speculation = self._request.speculation.if_there()
        return replace(self._request, delivered=tuple(self._tokens), fork_of=None, speculation=speculation)

    def admitted(self) -> None:
        """A worker has accepted it."""
        self._accepted = True
        self._vanished = 0

    def advance(self, delta: Delta, now: float) -> Delta:
        """Note what is delivered at `now`. Returns what its reader gets: the stats of a last delta span all workers."""
        if delta.token_ids:
            if self._first_token_at is None:
                self._first_token_at = now
            self._tokens += delta.token_ids
        for embedding in delta.embeddings:
            self._places.add(embedding.place)
            self._input_tokens += embedding.tokens
        if delta.cached_tokens is not None:
            # Later workers find what earlier ones have computed, which the first one found in no cache.
            if self._cached_tokens is None:
                self._cached_tokens = delta.cached_tokens
            delta = replace(delta, cached_tokens=None)
        if delta.stats is None or not (self._moved or self._cached_tokens is not None):
            return delta
        return replace(delta, stats=self._stats(delta.stats, now))

    def retry_after(self, error: EngineError) -> float | None:
        """Seconds until the next attempt, after one ended in `error`. None: the request ends with it.

        A lost worker is waited for by the attempt itself. A model may be lost with its worker between its lease and
        its use. A request that was accepted once does not lose its place to others that fill the queue.
        """
        match error:
            case WorkerDied() if error.retryable:
                self.losses += 1
                self._moved = True
                return 0.0
            case ModelReplaced():
                self._moved = True
                return 0.0
            case ModelNotLoaded() if self._vanished < _MAX_VANISHED_MODELS:
                self._vanished += 1
                return 0.0
            case CircuitOpen():
                return None
            case Overloaded() if self._accepted:
                return error.retry_after
            case _:
                return None

    def _stats(self, reported: GenerationStats, now: float) -> GenerationStats:
        """The last worker knows only its part of the time, and of the prompt what it found itself."""
        if self._cached_tokens is not None:
            reported = replace(reported, cached_tokens=self._cached_tokens)
        if not self._moved:
            return reported
        first = now if self._first_token_at is None else self._first_token_at
        decoding = now - first
        return replace(
            reported,
            prompt_tokens=self._input_tokens if self._places else reported.prompt_tokens,
            time_to_first_token=first - self._opened_at,
            tokens_per_second=(reported.tokens_generated - 1) / decoding if decoding > 0 else 0.0,
            total_time=now - self._opened_at,
        )
