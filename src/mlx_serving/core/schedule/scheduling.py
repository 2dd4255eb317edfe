"""What the scheduler obeys and what it says: its policy, the step it orders, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from mlx_serving.core.bounds import at_least, between, greater_than
from mlx_serving.core.generation import Priority
from mlx_serving.errors import Overloaded

_MIN_RETRY_S = 1.0
_MAX_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class SchedulerPolicy:
    """How requests share the device.

    `max_num_seqs` sequences are computed at the same time, over all models; `max_queue` more may wait, of which
    requests of low and background priority may take `batch_queue_share`, so that they cannot lock the others out.
    `kv_budget_bytes` bounds what all KV caches hold; None is no bound.

    `target_gap_s` is the longest time between two tokens of a stream that prefill may bring about. Where decoding alone
    leaves prefill less than `min_prefill_share` of the step, the gap grows until prefill has that share: a target that
    the device cannot reach must not starve new prompts. At 0.8 a token takes up to five times what it takes alone, and
    a prompt a quarter longer. A chunk of a prompt has at least `min_prefill_chunk` tokens,
    and all chunks of a step together have at most `max_prefill_chunk`. Prefill never makes a step longer than
    `max_step_s`, unless the smallest chunk does.

    A priority rises by one for every `ageing_s` that its oldest request has waited. Requests that arrive within
    `admission_window_s` of each other are admitted together while the device has other work: aligned rows keep the fast
    attention mask.
    """

    max_num_seqs: int = 16
    max_queue: int = 256
    batch_queue_share: float = 0.5
    kv_budget_bytes: int | None = None
    target_gap_s: float = 0.08
    min_prefill_share: float = 0.8
    min_prefill_chunk: int = 16
    max_prefill_chunk: int = 2048
    max_step_s: float = 2.0
    ageing_s: float = 10.0
    admission_window_s: float = 0.008

    def __post_init__(self) -> None:
        at_least("max_num_seqs", self.max_num_seqs, 1)
        at_least("max_queue", self.max_queue, 1)
        between("batch_queue_share", self.batch_queue_share, 0, 1)
        if self.kv_budget_bytes is not None:
            at_least("kv_budget_bytes", self.kv_budget_bytes, 1)
        greater_than("target_gap_s", self.target_gap_s, 0)
        between("min_prefill_share", self.min_prefill_share, 0, 0.95)
        at_least("min_prefill_chunk", self.min_prefill_chunk, 1)
        at_least("max_prefill_chunk", self.max_prefill_chunk, self.min_prefill_chunk)
        greater_than("max_step_s", self.max_step_s, 0)
        greater_than("ageing_s", self.ageing_s, 0)
        at_least("admission_window_s", self.admission_window_s, 0)

    def places(self, priority: Priority) -> int:
        """In the queue, for requests of that priority."""
        if priority in ("low", "background"):
            return ceil(self.max_queue * self.batch_queue_share)
        return self.max_queue


def queue_full(priority: Priority, waiting: int, places: int, retry_s: float) -> Overloaded:
    """What a request is told for which the queue has no place. `retry_s` is when it is thought to have one."""
    return Overloaded(
        f"{waiting} requests are waiting already; the limit for {priority} priority is {places}",
        retry_after=_bounded(retry_s),
        limit=places,
        given=waiting,
    )


def queue_slow(waiting: int, wait_s: float, most_s: float) -> Overloaded:
    """What a request is told that would have to wait for `wait_s`."""
    return Overloaded(
        f"{waiting} requests are waiting already, which takes about {wait_s:.0f} s; the limit is {most_s:g} s",
        retry_after=_bounded(wait_s - most_s / 2),
        limit=most_s,
        given=round(wait_s, 1),
    )


def _bounded(retry_s: float) -> float:
    return min(max(retry_s, _MIN_RETRY_S), _MAX_RETRY_S)


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence enters with an empty KV cache, or with the first entries that are known already: as many as the
    `start` of its first chunk. If `fork_of` is given they are a copy of that sequence's, up to the last token of the
    prompt they share; else they are the `cached` ones that are kept."""

    id: str
    fork_of: str | None = None
    cached: int = 0


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Compute tokens [start, start + count) of the sequence: its prompt, followed by what it had generated before it
    was preempted. A `last` chunk yields the sequence's next token; the others yield nothing. Others are to begin with
    what it has computed by the end of a `shared` one."""

    id: str
    start: int
    count: int
    last: bool
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode an image of the sequence, the one with this `index` among its own, which stands for so many `tokens`."""

    id: str
    index: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one model. Carry it out in the order of the fields.

    preempted: of any model. Drop their KV; they come back in a later `admitted` and are computed from the start.
    admitted:  of any model. Their first chunk may come in a later step.
    decode:    each yields one token. The same tuple object as before while nobody joins or leaves, so that a runner
               sees by identity whether its batch changes.
    prefill:   chunks beside the decode, several when prompts share the step.
    ending:    those of `decode` and `prefill` that yield the last of their max_tokens in this step.
    expected_s: how long the step is thought to take.
    encode:    nobody decodes or prefills beside it: between two of them others have a step.

    Who has been admitted and appears in neither `decode` nor `prefill` is paused or waits for its turn: its KV stays.
    """

    model: str
    preempted: tuple[str, ...]
    admitted: tuple[Admission, ...]
    decode: tuple[str, ...]
    prefill: tuple[PrefillChunk, ...]
    ending: tuple[str, ...]
    expected_s: float
    encode: Encode | None = None

    @property
    def prefill_tokens(self) -> int:
        return sum(chunk.count for chunk in self.prefill)


@dataclass(frozen=True, slots=True)
class WorkDone:
    """What steps have done since the start. A batch is the sequences that a step computes something for. `prefill_s`
    and `decode_s` are seconds of the device; a step that does both is split by what decoding alone is thought to take.
    The first token of a reply comes of its prompt: it is not among `decoded_tokens`. `encode_s` went into
    `encoded_images`."""

    steps: int
    last_batch: int
    mean_batch: float
    prefilled_tokens: int
    prefill_s: float
    decoded_tokens: int
    decode_s: float
    encoded_images: int = 0
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One model's part. `decode_step_s` is what a step of its present batch is thought to take, `prefill_tokens_per_s`
    how fast a prompt without context is thought to be computed; 0 is not measured."""

    queued: int
    running: int
    prefilling: int
    paused: int
    done: WorkDone
    decode_step_s: float
    prefill_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class SchedulerLoad:
    """What is going on now: sequences by what they do, bytes of KV held and reserved; and since the start:
    preemptions and the work done, that of models which are gone included."""

    queued: int
    running: int
    prefilling: int
    paused: int
    kv_held_bytes: int
    kv_reserved_bytes: int
    preemptions: int
    done: WorkDone
    models: dict[str, ModelLoad]
