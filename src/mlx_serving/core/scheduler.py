"""Continuous batching over several models: what the device does next.

    scheduler.add(...)                              a request is accepted, or refused with Overloaded
    expired = scheduler.expire(now)                 their deadlines are over: tell their readers, drop their KV
    refused = scheduler.refuse_oversized()          they wait for memory that is not there any more: tell their readers
    step = scheduler.schedule(now)                  one step of one model, to be launched
    scheduler.advance(id)                           it turned out to compute a token more of a sequence
    scheduler.update(step, duration_s, finished)    what came of it

Every step decodes one token for each running sequence of its model and computes a bounded piece of prompts beside it; a
model that cannot be batched computes one sequence a step, in turns. Or it encodes one image; if anybody else can go on,
the next step of the model is theirs. New work is looked at on every call. Every accepted
sequence ends exactly once: it was named as finished, or a step in whose `ending` it stands was updated, or `abort` said
true, or `expire`, `refuse_oversized` or `remove_model` returned it. Later mentions of it are ignored.

`schedule` counts what it orders as done, so the next step may be scheduled and launched before the last one is updated;
a sequence that turns out to have finished has then computed one token too many, which the caller throws away. Steps are
updated in the order in which they were scheduled. A step that failed is not updated: its sequences are aborted.

A sequence is preempted for memory, or for a request of a priority higher than the one it got its slot with. Waiting
raises that up to high, and each preemption by one, so that nobody is preempted more often than there are priorities
above its own, but for memory. The lowest priority goes first, and of these who came last. Paused sequences keep their
KV and have no slot; they are the first to lose it when memory is short.

Time is monotonic seconds and never goes back.
"""

from __future__ import annotations

from collections.abc import Collection

from mlx_serving.core.bounds import at_least, greater_than
from mlx_serving.core.generation import Priority
from mlx_serving.core.prefix.prefixes import NO_PREFIXES, Prefixes
from mlx_serving.core.schedule.admission import ArrivalWindow, admit, make_room, relieve
from mlx_serving.core.schedule.deadlines import Deadlines
from mlx_serving.core.schedule.encodings import NO_ENCODINGS, Encodings, ImageSpan
from mlx_serving.core.schedule.fair_turns import Callers
from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.schedule.scheduled_sequence import RANKS, Lane, Sequence, State
from mlx_serving.core.schedule.scheduler_load import load_of
from mlx_serving.core.schedule.scheduler_memory import SchedulerMemory
from mlx_serving.core.schedule.scheduling import SchedulerLoad, SchedulerPolicy, Step, queue_full
from mlx_serving.core.schedule.sequence_pool import SequencePool
from mlx_serving.core.schedule.step_accounts import StepAccounts
from mlx_serving.core.schedule.step_composition import compose
from mlx_serving.core.schedule.step_cost import StepCost
from mlx_serving.errors import ModelNotLoaded


class Scheduler:
    """`prefixes` tells what need not be computed because it is kept, or will be by the time it is needed, `encodings`
    which images need not be encoded."""

    def __init__(
        self, policy: SchedulerPolicy, prefixes: Prefixes = NO_PREFIXES, encodings: Encodings = NO_ENCODINGS
    ) -> None:
        self.policy = policy
        self._lanes: dict[str, Lane] = {}
        self._sequences: dict[str, Sequence] = {}
        self._pool = SequencePool(policy, prefixes, encodings)
        self._callers = Callers()
        self._deadlines = Deadlines(self._is_current)
        self._arrivals = ArrivalWindow(policy.admission_window_s)
        self._accounts = StepAccounts(policy.max_step_s)
        self.memory = SchedulerMemory(self._pool, self._sequences, policy.max_num_seqs)

    def __len__(self) -> int:
        """Sequences that have not ended."""
        return len(self._sequences)

    def __contains__(self, id: object) -> bool:  # noqa: A002
        return id in self._sequences

    @property
    def is_idle(self) -> bool:
        """Nothing to do before a command comes or `next_deadline` is reached; paused sequences may be there."""
        pool = self._pool
        return not (pool.turns.busy or pool.queue.depth or pool.ending)

    @property
    def next_deadline(self) -> float | None:
        """`expire` has nothing to say before this time."""
        return self._deadlines.next

    def add_model(
        self,
        model: str,
        *,
        kv_bytes_per_token: int,
        batchable: bool,
        trimmable: bool = True,
        exact_prefixes: bool = False,
        weight: float = 1.0,
        prefill_memory: PrefillMemory | None = None,
    ) -> None:
        """`kv_bytes_per_token` of all layers together. `trimmable`: the KV of a sequence can be cut back to its prompt
        at any time. `exact_prefixes`: others can begin with it where a chunk of it has ended, and nowhere else. A model
        of twice the `weight` gets twice the device time."""
        if model in self._lanes:
            raise ValueError(f"{model} is here already")
        at_least("kv_bytes_per_token", kv_bytes_per_token, 0)
        greater_than("weight", weight, 0)
        self._lanes[model] = Lane(
            model,
            kv_bytes_per_token,
            batchable,
            trimmable,
            exact_prefixes,
            weight,
            StepCost(self.policy.max_num_seqs),
            prefill_memory or PrefillMemory(),
        )

    def remove_model(self, model: str) -> list[str]:
        """Forget a model; returns the sequences that end by it."""
        ended = self.sequences(model)
        for sequence_id in ended:
            self._end(self._sequences[sequence_id])
        del self._lanes[model]
        return ended

    def sequences(self, model: str) -> list[str]:
        """The model's sequences that have not ended, in the order they came."""
        return [one.id for one in self._sequences.values() if one.lane.model == model]

    def prefill_s(self, model: str, start: int, count: int) -> float:
        """Seconds to compute `count` prompt tokens that follow `start` others, as far as is known: 0 if nothing is."""
        return self._lanes[model].cost.prefill_s(start, count)

    def add(
        self,
        id: str,  # noqa: A002
        model: str,
        *,
        prompt_tokens: int,
        max_tokens: int,
        now: float,
        priority: Priority = "normal",
        caller: str = "",
        deadline: float | None = None,
        fork_of: str | None = None,
        stops: tuple[int, ...] = (),
        images: tuple[ImageSpan, ...] = (),
    ) -> None:
        """Accept a sequence. `caller` is who takes fair turns with other callers. At each of `stops`, counts of tokens,
        a chunk ends that is `shared`. The tokens of each of `images`, in ascending order and in the prompt, can be
        computed when it is encoded.

        `fork_of` names a sequence with the same prompt: this one waits until that prompt was computed and then starts
        with a copy of its KV, or computes the prompt itself if the other one is gone by then. So does it if the model
        is not trimmable and the other one was beyond its prompt already when this one came.

        Raises `Overloaded` when the queue is full, or when the KV of prompt and max_tokens does not fit into the budget
        as it is now, `ContextLengthExceeded` when it never can, `ModelNotLoaded` for an unknown model, ValueError for
        an id that is in use.
        """
        lane = self._lanes.get(model)
        if lane is None:
            raise ModelNotLoaded(f"{model} is not loaded", model=model)
        if id in self._sequences:
            raise ValueError(f"{id} is in use")
        at_least("prompt_tokens", prompt_tokens, 1)
        at_least("max_tokens", max_tokens, 1)
        self._pool.kv.require(prompt_tokens, max_tokens, lane.kv_bytes_per_token)
        self._refuse_when_full(priority)
        parent = self._sequences.get(fork_of) if fork_of is not None else None
        sequence = Sequence(
            id=id,
            lane=lane,
            caller=self._callers.enter(caller),
            base_rank=RANKS[priority],
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            deadline=deadline,
            arrived=now,
            fork_of=parent,
            stops=stops,
            images=images,
        )
        self._sequences[id] = sequence
        if deadline is not None:
            self._deadlines.add(deadline, id)
        if parent is not None and parent.awaits_prompt:
            self._pool.hold(sequence, parent)
        else:
            self._pool.enqueue(sequence)
        self._arrivals.note_arrival(now)

    def abort(self, id: str) -> bool:  # noqa: A002
        """End a sequence; its place is free at the next step. False when it has ended or never was."""
        sequence = self._sequences.get(id)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    def has_heirs(self, id: str) -> bool:  # noqa: A002
        """Whether forks that have waited for its prompt are still to start with a copy. If its model is not trimmable,
        keep what its KV was before the prompt's last token from the step on that completes the prompt, and until this
        is false."""
        sequence = self._sequences.get(id)
        return sequence is not None and bool(sequence.heirs)

    def pause(self, id: str) -> None:  # noqa: A002
        """Give it no steps and no slot until it is resumed; it keeps its KV while memory lasts. Unknown ids are
        ignored, and so is who has its last token on the way."""
        sequence = self._sequences.get(id)
        if sequence is not None and sequence.state not in (State.ENDING, State.PAUSED):
            self._pool.pause(sequence)

    def resume(self, id: str) -> None:  # noqa: A002
        """Let it go on as soon as a slot is free. Unknown ids and those who are not paused are ignored."""
        sequence = self._sequences.get(id)
        if sequence is not None and sequence.state is State.PAUSED:
            self._pool.requeue(sequence)

    def advance(self, id: str) -> None:  # noqa: A002
        """A step computes a token of a running sequence besides the one that was ordered: it was known beforehand. At
        least one of its max_tokens must still be to come. Unknown ids are ignored."""
        sequence = self._sequences.get(id)
        if sequence is None:
            return
        lane = sequence.lane
        ended = self._pool.advance(sequence, 1)
        assert not ended, "one of its tokens is still to come"
        lane.steady = None
        self._accounts.add_decoded(lane)

    def expire(self, now: float) -> list[str]:
        """End those whose deadline is over, and name them."""
        expired = self._deadlines.due(now)
        for sequence_id in expired:
            self._end(self._sequences[sequence_id])
        return expired

    def refuse_oversized(self) -> list[str]:
        """End those who wait for more KV than the budget has become, and name them: they are in the way of others. To
        be asked before every `schedule`. Who has begun is not refused: it goes on when there is memory again."""
        oversized = self.memory.sort_out()
        for sequence in oversized:
            self._end(sequence)
        return [one.id for one in oversized]

    def schedule(self, now: float) -> Step | None:
        """The next step. None when nobody can go on, or not before the steps under way were updated."""
        pool = self._pool
        if pool.kv.overcommitted:
            if not make_room(pool, self.policy):
                return None
            relieve(pool, self.policy)
        if pool.changed and pool.queue.depth and self._may_admit(now):
            admit(pool, self.policy, now)
            # Who has come back with its KV needs room to grow now.
            if pool.kv.overcommitted and not make_room(pool, self.policy):
                return None
        lane = pool.turns.next()
        if lane is None:
            return None
        step = lane.steady
        if step is not None and lane.steady_left > 0 and not pool.admitted and not pool.preempted:
            lane.steady_left -= 1
            for row in lane.running.values():
                row.computed += 1
            pool.kv.held += lane.kv_bytes_per_token * len(step.decode)
        else:
            step = compose(pool, lane, self.policy)
        lane.virtual_s += step.expected_s / lane.weight
        return step

    def take_preempted(self) -> list[str]:
        """Who lost its KV since the last step, for when there is no next one to tell it."""
        preempted = self._pool.preempted
        self._pool.preempted = []
        return preempted

    def update(self, step: Step, duration_s: float, finished: Collection[str] = ()) -> None:
        """Learn from a step that took `duration_s` of the device, and end its `ending` and those who `finished`.

        With steps launched ahead, `duration_s` counts from the end of the step before if that is later than the launch.
        """
        lane = self._lanes.get(step.model)
        if lane is not None:
            self._accounts.settle(lane, step, duration_s)
        for sequence_id in step.ending:
            sequence = self._sequences.get(sequence_id)
            if sequence is not None and sequence.state is State.ENDING:
                self._complete(sequence)
        for sequence_id in finished:
            sequence = self._sequences.get(sequence_id)
            if sequence is not None:
                self._complete(sequence)

    def load(self) -> SchedulerLoad:
        """What is going on, for telemetry."""
        return load_of(self._pool, self._lanes, self._sequences.values(), self._accounts.work())

    def _may_admit(self, now: float) -> bool:
        pool = self._pool
        free = self.policy.max_num_seqs - pool.slots
        return self._arrivals.is_open(now) or not pool.turns.busy or pool.queue.depth >= free

    def _refuse_when_full(self, priority: Priority) -> None:
        places = self.policy.places(priority)
        if len(self._sequences) < self.policy.max_num_seqs + places:
            return
        # Half of the queue: whoever comes back finds room, and the device has not run dry by then.
        seconds = self._accounts.seconds_for(self._pool.queue.work // 2)
        raise queue_full(priority, len(self._sequences) - self._pool.slots, places, seconds)

    def _is_current(self, deadline: float, id: str) -> bool:  # noqa: A002
        sequence = self._sequences.get(id)
        return sequence is not None and sequence.deadline == deadline

    def _complete(self, sequence: Sequence) -> None:
        replied = sequence.replied
        if replied:
            sequence.lane.replies.learn(replied)
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        self._pool.remove(sequence)
        self._callers.leave(sequence.caller)
        if not self._sequences:
            self._pool.kv.largest = 0
