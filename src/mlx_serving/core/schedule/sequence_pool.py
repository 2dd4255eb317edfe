"""Where every sequence is, and the slots and memory it takes: the moves between the states of `scheduled_sequence`."""

from __future__ import annotations

from typing import assert_never

from mlx_serving.core.prefix.prefixes import Prefixes
from mlx_serving.core.request_queue import RequestQueue
from mlx_serving.core.schedule.encodings import Encodings
from mlx_serving.core.schedule.fair_turns import FairTurns
from mlx_serving.core.schedule.kv_budget import KvBudget, extension
from mlx_serving.core.schedule.scheduled_sequence import Sequence, State
from mlx_serving.core.schedule.scheduling import Admission, SchedulerPolicy


class SequencePool:
    """`residents` have KV and tokens to come. `slots` are taken by those who prefill, run or are `ending`.

    `prefill_bytes` is what computing prompts may take in one step, besides KV. `changed`: somebody came, or a place may
    have become free, since admission was last tried. `admitted` and `preempted` are to be told with the next step.
    """

    def __init__(self, policy: SchedulerPolicy, prefixes: Prefixes, encodings: Encodings) -> None:
        self.prefixes = prefixes
        self.encodings = encodings
        self.queue = RequestQueue(policy.ageing_s)
        self.turns = FairTurns()
        self.kv = KvBudget(policy.kv_budget_bytes)
        self.prefill_bytes = float("inf")
        self.residents: dict[str, Sequence] = {}
        self.shelved: dict[str, Sequence] = {}
        self.slots = 0
        self.ending = 0
        self.preemptions = 0
        self.changed = False
        self.admitted: dict[str, Admission] = {}
        self.preempted: list[str] = []

    def enqueue(self, sequence: Sequence) -> None:
        sequence.state = State.QUEUED
        self.queue.push(sequence, self.prefixes.covered(sequence.id))
        self.changed = True

    def requeue(self, sequence: Sequence) -> None:
        """Queue one who was there before those who wait now."""
        sequence.state = State.QUEUED
        self.queue.push_front(sequence)
        self.changed = True

    def hold(self, fork: Sequence, parent: Sequence) -> None:
        """Let it wait for the prompt of `parent`."""
        fork.state = State.HELD
        fork.leader = parent
        parent.forks.append(fork)

    def follow(self, sequence: Sequence, leader: Sequence, tokens: int) -> None:
        """Let one of the queue wait until `leader` has computed its first `tokens` tokens."""
        self.queue.remove(sequence)
        sequence.state = State.HELD
        # The last token is computed only to begin decoding: with it, all of a prompt is there.
        sequence.leader, sequence.awaits = leader, tokens if tokens < leader.target - 1 else leader.target
        leader.followers.append(sequence)

    def seat(self, sequence: Sequence, rank: int) -> None:
        """Give one of the queue the slot that `rank` has earned it, and room for its KV if it has none."""
        self.queue.remove(sequence)
        self.slots += 1
        # Waiting alone protects from all but critical requests; being preempted by them does in the end.
        sequence.rank = max(rank, 0 if sequence.base_rank <= sequence.boosts else 1)
        if not sequence.resident:
            self._allot(sequence)
        lane = sequence.lane
        lane.enter(sequence)
        if lane.size == 1:
            self.turns.enter(lane)

    def advance(self, sequence: Sequence, tokens: int) -> bool:
        """Count tokens as computed. True when the last token it may have is on its way."""
        sequence.computed += tokens
        self.kv.held += tokens * sequence.lane.kv_bytes_per_token
        if sequence.followers:
            self._release_followers(sequence, sequence.computed)
        if sequence.state is State.PREFILLING and sequence.computed >= sequence.target:
            sequence.lane.leave(sequence)
            sequence.lane.enter(sequence)
            if sequence.generated == 0:  # else its KV is beyond the prompt at once
                sequence.heirs.extend(sequence.forks)
            self._release_forks(sequence)
        if sequence.computed < sequence.limit:
            return False
        if sequence.computed < sequence.final:
            self._reserve(sequence, sequence.computed + extension(sequence.replied))
            return False
        self._leave_lane(sequence)
        sequence.state = State.ENDING
        del self.residents[sequence.id]
        self.ending += 1
        return True

    def pause(self, sequence: Sequence) -> None:
        self._withdraw(sequence)
        sequence.state = State.PAUSED
        self._release_forks(sequence)

    def shelve(self, sequence: Sequence) -> None:
        """Let it wait, in nobody's way, until there is more memory."""
        self._withdraw(sequence)
        sequence.state = State.SHELVED
        self.shelved[sequence.id] = sequence

    def unshelve(self) -> None:
        """Queue those again that fit into the KV budget, before those who wait now."""
        for sequence in [one for one in self.shelved.values() if one.most_bytes <= self.kv.limit]:
            del self.shelved[sequence.id]
            self.requeue(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take its slot and its KV. It waits for both, before those who came after it, and one priority higher."""
        was = sequence.state
        self._withdraw(sequence)
        sequence.bill()
        replied = sequence.replied
        self._drop_kv(sequence)
        del self.residents[sequence.id]
        sequence.generated = replied
        sequence.boosts += 1
        self.preemptions += 1
        sequence.heirs.clear()
        self._release_forks(sequence)
        if was is State.PAUSED:
            sequence.state = was
        else:
            self.requeue(sequence)
        if self.admitted.pop(sequence.id, None) is None:
            self.preempted.append(sequence.id)

    def remove(self, sequence: Sequence) -> None:
        """It has ended, wherever it is."""
        self._withdraw(sequence)
        sequence.bill()
        if sequence.resident:
            self._drop_kv(sequence)
            self.residents.pop(sequence.id, None)
        self.admitted.pop(sequence.id, None)
        self._disinherit(sequence)
        sequence.heirs.clear()
        if sequence.id in self.preempted:
            self.preempted.remove(sequence.id)
        self._release_forks(sequence)

    def _withdraw(self, sequence: Sequence) -> None:
        match sequence.state:
            case State.HELD:
                leader, sequence.leader = sequence.leader, None
                assert leader is not None
                (leader.forks if sequence in leader.forks else leader.followers).remove(sequence)
            case State.QUEUED:
                self.queue.remove(sequence)
            case State.PREFILLING | State.RUNNING:
                self._leave_lane(sequence)
                self.slots -= 1
            case State.ENDING:
                self.ending -= 1
                self.slots -= 1
            case State.PAUSED:
                pass
            case State.SHELVED:
                del self.shelved[sequence.id]
            case _:
                assert_never(sequence.state)
        self.changed = True

    def _leave_lane(self, sequence: Sequence) -> None:
        lane = sequence.lane
        lane.leave(sequence)
        if lane.size == 0:
            self.turns.leave(lane)

    def _allot(self, sequence: Sequence) -> None:
        self._reserve(sequence, self.reservation(sequence))
        sequence.resident = True
        self.residents[sequence.id] = sequence
        source = sequence.fork_of
        if source is not None and _can_be_copied(source, sequence):
            # The last token of the prompt is computed again, for its logits.
            sequence.computed = sequence.prompt_tokens - 1
            self.admitted[sequence.id] = Admission(sequence.id, source.id)
        else:
            sequence.computed = self.prefixes.claim(sequence.id)
            self.admitted[sequence.id] = Admission(sequence.id, cached=sequence.computed)
            sequence.billed = max(sequence.billed, sequence.computed)  # nobody computes them
        self.kv.held += sequence.computed * sequence.lane.kv_bytes_per_token
        self._disinherit(sequence)
        # Charged in advance, so that a caller with many requests does not get every free slot at once.
        sequence.caller.served += max(0, sequence.target - sequence.billed)
        sequence.billed = max(sequence.billed, sequence.target)

    def reservation(self, sequence: Sequence) -> int:
        """Tokens for which it needs room when it gets its slot."""
        if sequence.resident:
            return 0
        if sequence.boosts:
            return sequence.final
        return min(sequence.final, sequence.prompt_tokens + sequence.lane.replies.expected(sequence.max_tokens))

    def _reserve(self, sequence: Sequence, tokens: int) -> None:
        tokens = min(tokens, sequence.final)
        self.kv.reserved += (tokens - sequence.reserved) * sequence.lane.kv_bytes_per_token
        sequence.reserved = sequence.limit = tokens

    def _drop_kv(self, sequence: Sequence) -> None:
        size = sequence.lane.kv_bytes_per_token
        self.kv.held -= sequence.computed * size
        self.kv.reserved -= sequence.reserved * size
        sequence.computed = sequence.reserved = sequence.encoded = 0
        sequence.resident = False

    def _release_forks(self, parent: Sequence) -> None:
        """Its prompt is computed, or will not be: nobody waits for it any more."""
        for fork in reversed(parent.forks):
            fork.leader = None
            self.requeue(fork)
        parent.forks.clear()
        self._release_followers(parent, parent.target)

    def _release_followers(self, leader: Sequence, computed: int) -> None:
        """Queue those again who wait for no more than these tokens of it."""
        ready = [one for one in leader.followers if one.awaits <= computed]
        for one in reversed(ready):
            leader.followers.remove(one)
            one.leader = None
            self.requeue(one)

    def _disinherit(self, fork: Sequence) -> None:
        """It has begun, or never will: nothing is kept for it."""
        parent, fork.fork_of = fork.fork_of, None
        if parent is not None and fork in parent.heirs:
            parent.heirs.remove(fork)


def _can_be_copied(parent: Sequence, fork: Sequence) -> bool:
    """Whether the runner has the KV of the parent's prompt without its last token."""
    has_prompt = parent.resident and parent.state is not State.ENDING and parent.computed >= fork.prompt_tokens
    return has_prompt and (parent.lane.trimmable or fork in parent.heirs)
