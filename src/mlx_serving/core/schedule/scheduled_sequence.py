"""The scheduler's record of one sequence, and of the model and the caller it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from mlx_serving.core.generation import Priority
from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.schedule.kv_budget import ReplyLength
from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.schedule.scheduling import Step
from mlx_serving.core.schedule.step_cost import StepCost
from mlx_serving.core.schedule.work_done import WorkMeter

RANKS: dict[Priority, int] = {"critical": 0, "high": 1, "normal": 2, "low": 3, "background": 4}


class State(Enum):
    """
    Held ──▶ Queued ──▶ Prefilling ──▶ Running ──▶ Ending
             ▲ ▲ ▲           └──────┬──────┘
             │ │ └──── preempt ─────┤ pause
             │ └────── resume ─── Paused
             └── memory is back ── Shelved ◀── Queued, preempted before, and the KV budget has become too small

    Held: a fork whose parent's prompt is being computed, or a follower, whose beginning its leader computes.
    Prefilling, Running and Ending have a slot. Ending: every token it may have is on its way. Queued and Paused ones
    have KV if they were paused and not preempted since.
    """

    HELD = auto()
    QUEUED = auto()
    PREFILLING = auto()
    RUNNING = auto()
    ENDING = auto()
    PAUSED = auto()
    SHELVED = auto()


@dataclass(slots=True, eq=False)
class Caller:
    """`served` counts tokens, prompt and reply, lifted on arrival to what the others have had (see `Callers`)."""

    name: str
    served: int = 0
    live: int = 0


@dataclass(slots=True, eq=False)
class Lane:
    """One model: its sequences that have a slot, what its steps cost, and its place in the turns.

    `batch` names those who run, None when somebody joined or left. `steady` is the step that repeats, `steady_left`
    more times at most, while nobody joins, leaves or prefills. `virtual_s` is device time by weight. With
    `exact_prefixes` others can begin with the KV of a sequence only where a chunk of it has ended. `has_encoded`: its
    last step encoded an image.
    """

    model: str
    kv_bytes_per_token: int
    batchable: bool
    trimmable: bool
    exact_prefixes: bool
    weight: float
    cost: StepCost
    prefill_memory: PrefillMemory = field(default_factory=PrefillMemory)
    replies: ReplyLength = field(default_factory=ReplyLength)
    running: dict[str, Sequence] = field(default_factory=dict[str, "Sequence"])
    prefilling: dict[str, Sequence] = field(default_factory=dict[str, "Sequence"])
    batch: tuple[str, ...] | None = None
    steady: Step | None = None
    steady_left: int = 0
    virtual_s: float = 0.0
    prefill_turns: int = 0
    decodes_since_prefill: int = 0
    has_encoded: bool = False
    work: WorkMeter = field(default_factory=WorkMeter)

    def enter(self, sequence: Sequence) -> None:
        if sequence.computed < sequence.target:
            sequence.state = State.PREFILLING
            self.prefilling[sequence.id] = sequence
        else:
            sequence.state = State.RUNNING
            self.running[sequence.id] = sequence
            self.batch = None
        self.steady = None

    def leave(self, sequence: Sequence) -> None:
        if sequence.state is State.PREFILLING:
            del self.prefilling[sequence.id]
        else:
            del self.running[sequence.id]
            self.batch = None
        self.steady = None

    @property
    def size(self) -> int:
        return len(self.running) + len(self.prefilling)

    def least_growth(self, chunk: int) -> int:
        """Bytes of KV that a step needs at least, whose smallest piece of a prompt has `chunk` tokens."""
        pieces = (one.piece(min(chunk, one.target - one.computed)) for one in self.prefilling.values())
        return self.kv_bytes_per_token * (len(self.running) + max(pieces, default=0))


@dataclass(slots=True, eq=False)
class Sequence:
    """`computed` tokens are in its KV cache. `target` tokens, the prompt and what was generated before a preemption,
    are to be computed before it decodes; `final` are computed when its last token is out; at `limit`, the next of its
    reservation and `final`, something must be decided. `rank` is its priority when it got its slot, `boosts` how often
    it was preempted, `billed` the computed tokens its caller has paid for, `generated` the tokens it had at `target`.
    `forks` wait for its prompt; `heirs` are those of them that have waited until it was computed, and not begun yet.
    `followers` wait until as many of its tokens are computed as each `awaits`; `leader` is whom it waits for itself. At
    each of `stops`, in ascending order, a chunk ends. The first `encoded` of its `images` are encoded, or need not be.
    """

    id: str
    lane: Lane
    caller: Caller
    base_rank: int
    prompt_tokens: int
    max_tokens: int
    deadline: float | None
    arrived: float
    fork_of: Sequence | None
    state: State = State.QUEUED
    resident: bool = False
    computed: int = 0
    generated: int = 0
    reserved: int = 0
    limit: int = 0
    rank: int = 0
    boosts: int = 0
    billed: int = 0
    work: int = 0
    forks: list[Sequence] = field(default_factory=list["Sequence"])
    heirs: list[Sequence] = field(default_factory=list["Sequence"])
    leader: Sequence | None = None
    awaits: int = 0
    followers: list[Sequence] = field(default_factory=list["Sequence"])
    stops: tuple[int, ...] = ()
    images: tuple[ImageSpan, ...] = ()
    encoded: int = 0

    @property
    def target(self) -> int:
        return self.prompt_tokens + self.generated

    @property
    def final(self) -> int:
        return self.prompt_tokens + self.max_tokens - 1

    @property
    def replied(self) -> int:
        """Tokens generated so far."""
        return self.generated if self.computed < self.target else self.computed - self.prompt_tokens + 1

    @property
    def most_bytes(self) -> int:
        """What its KV takes when its last token is out."""
        return self.final * self.lane.kv_bytes_per_token

    @property
    def awaits_prompt(self) -> bool:
        """Whether its prompt will be computed without anybody's doing."""
        return self.computed < self.prompt_tokens and self.state is not State.PAUSED

    @property
    def next_stop(self) -> int:
        """Where the next chunk ends at the latest."""
        stops = [stop for stop in self.stops if self.computed < stop < self.target]
        if self.lane.exact_prefixes:
            stops += [one.awaits for one in self.followers]
        if self.encoded < len(self.images):
            stops.append(max(self.images[self.encoded].start, self.computed))
        return self.computed + self.piece(min(stops, default=self.target) - self.computed)

    def piece(self, count: int) -> int:
        """How many tokens a chunk of it has that is to have `count`: fewer, if an image that must be whole would be cut
        and something stands before it, else as many more as that image has."""
        end = self.computed + count
        for image in self.images:
            if image.whole and max(image.start, self.computed) < end < image.end:
                return (image.start if image.start > self.computed else image.end) - self.computed
        return count

    @property
    def awaits_image(self) -> bool:
        """Whether no more of its prompt can be computed before an image of it is encoded."""
        return self.encoded < len(self.images) and self.next_stop <= self.computed

    def skip_images(self) -> None:
        """Pass over those of whose tokens none is to be computed."""
        while self.encoded < len(self.images) and self.images[self.encoded].end <= self.computed:
            self.encoded += 1

    @property
    def rest(self) -> int:
        """How many tokens it computes until somebody can go on: itself, or who waits for it."""
        return min((one.awaits for one in self.followers), default=self.target) - self.computed

    def is_shared_at(self, end: int) -> bool:
        """Whether others are to begin with its first `end` tokens."""
        return end in self.stops or any(one.awaits <= end for one in self.followers)

    @property
    def has_slot(self) -> bool:
        """Whether it has a slot and may be made to give it up."""
        return self.state is State.PREFILLING or self.state is State.RUNNING

    def claim_s(self, ageing_s: float) -> float:
        """The time that stands for how urgent it is, the earlier the more: each priority is a head start of `ageing_s`,
        and each preemption is worth another."""
        return self.arrived + ageing_s * (self.base_rank - self.boosts)

    def rank_at(self, now: float, ageing_s: float) -> int:
        """Its priority with what waiting and being preempted added: 0 is the most urgent."""
        return max(0, self.base_rank - self.boosts - int((now - self.arrived) / ageing_s))

    def bill(self) -> None:
        if self.computed > self.billed:
            self.caller.served += self.computed - self.billed
            self.billed = self.computed
