"""What is known of the requests that are being answered, should the server stop before they are finished."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mlx_serving.core.generation import ChatPrompt, Delta, EmbeddingInputs, GenerationRequest, Prompt
from mlx_serving.core.resumption import RequestLog


@dataclass(slots=True)
class Noted:
    """A request that is being answered, as far as it got, and the key that made it; None while keys are off."""

    log: RequestLog
    key: str | None

    def add(self, number: int, delta: Delta) -> None:
        """A sequence got on."""
        self.log.sequences[number].deltas.append(delta)

    def sent(self, number: int, events: int = 0) -> None:
        """The client has all that the sequence has delivered, in so many numbered events."""
        self.log.events = events
        sequence = self.log.sequences[number]
        sequence.sent = len(sequence.deltas)

    def opened(self, events: int = 0) -> None:
        """The client has the beginning of the stream, in so many numbered events."""
        self.log.opened, self.log.events = True, events


class Journal:
    def __init__(self) -> None:
        self._running: dict[str, Noted] = {}

    def running(self) -> list[Noted]:
        """In the order in which they came."""
        return list(self._running.values())

    @contextmanager
    def noting(self, noted: Noted) -> Generator[None]:
        """Know of this request while the block runs."""
        self._running[noted.log.completion_id] = noted
        try:
            yield
        finally:
            del self._running[noted.log.completion_id]


def is_lasting(prompt: Prompt | EmbeddingInputs) -> bool:
    """Whether another start knows what was asked: it could not know what pictures were, as a URL may lead to another
    one by then."""
    return not (isinstance(prompt, ChatPrompt) and prompt.sources)


def seeded(requests: Sequence[GenerationRequest]) -> tuple[GenerationRequest, ...]:
    """The same, with a seed for each that has none: whoever finishes it must draw the same numbers."""
    return tuple(
        request
        if request.sampling.seed is not None
        else replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        for request in requests
    )
