"""What must be kept of a request so that another process can finish it, and its client goes on where it was cut off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from mlx_serving.core.choices import Choices
from mlx_serving.core.generation import Delta, GenerationRequest

Api = Literal["chat", "completions", "messages", "responses"]

_NOTHING = Delta("")


class SequenceLog:
    """One sequence of a request: what was asked, what was generated, and how many of these deltas its client has."""

    __slots__ = ("deltas", "request", "sent")

    def __init__(self, request: GenerationRequest, deltas: Iterable[Delta] = (), sent: int = 0) -> None:
        """The sampling of `request` has a seed: whoever finishes it must draw the same numbers."""
        self.request = request
        self.deltas = list(deltas)
        self.sent = sent

    @classmethod
    def of_parts(cls, request: GenerationRequest, sent: Sequence[Delta], unsent: Sequence[Delta]) -> SequenceLog:
        """What `parts` has taken apart."""
        return cls(request, (*sent, *unsent), sent=len(sent))

    @property
    def ended(self) -> bool:
        return bool(self.deltas) and self.deltas[-1].finish_reason is not None

    def next_request(self) -> GenerationRequest:
        """What to ask for: the rest."""
        delivered = tuple(token for delta in self.deltas for token in delta.token_ids)
        return replace(self.request, delivered=delivered, fork_of=None if delivered else self.request.fork_of)

    def parts(self) -> tuple[tuple[Delta, ...], tuple[Delta, ...]]:
        """All of it as few deltas: what the client has, and what it has not."""
        return runs(self.deltas[: self.sent]), runs(self.deltas[self.sent :])


@dataclass(slots=True)
class RequestLog:
    """One request of a client. `completion_id`, `created` (Unix seconds), `model`, `system_fingerprint` and, for those
    who asked for one, `service_tier` are what every part of its answer repeats; `facts` are what else its API says in
    the answer, as plain data. `opened`: its client has the beginning of the stream, and so many `events` of those that
    are numbered. `cut_at` is when it was cut off first, in Unix seconds."""

    completion_id: str
    api: Api
    created: int
    model: str
    system_fingerprint: str
    stream: bool
    include_usage: bool
    logprobs: bool
    choices: Choices
    sequences: list[SequenceLog]
    opened: bool = False
    cut_at: float | None = None
    service_tier: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    events: int = 0

    @property
    def ended(self) -> bool:
        return all(sequence.ended for sequence in self.sequences)


def runs(deltas: Sequence[Delta]) -> tuple[Delta, ...]:
    """As few deltas that say the same in the same order: of one, what is thought comes first, then what is said, then
    what is called."""
    found: list[list[Delta]] = []
    last = 0  # the latest kind in the run
    for delta in deltas:
        kinds = [number for number, said in enumerate((delta.reasoning, delta.text, delta.tool_calls), 1) if said]
        if not found or (kinds and (kinds[0] < last or ((last == 1) != (kinds[0] == 1) and last))):
            found.append([])
            last = 0
        found[-1].append(delta)
        last = max([last, *kinds])
    return tuple(map(merged, found))


def merged(deltas: Sequence[Delta]) -> Delta:
    """One delta that says what these say."""
    if not deltas:
        return _NOTHING
    return Delta(
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        deltas[-1].finish_reason,
        deltas[-1].stats,
        tuple(place for delta in deltas for place in delta.logprobs),
        "".join(delta.reasoning for delta in deltas),
        tuple(piece for delta in deltas for piece in delta.tool_calls),
        deltas[-1].stop,
    )


T = TypeVar("T")


def within_bounds(
    entries: Sequence[tuple[float, T]], now: float, *, max_age_s: float, limit: int
) -> tuple[list[T], int]:
    """Of entries with the times they are from (seconds), those no older than `max_age_s`, and of these the `limit` that
    came first; and how many are left out."""
    young = [entry for at, entry in entries if now - at <= max_age_s]
    return young[:limit], len(entries) - min(len(young), limit)
