"""Whatever comes, in whatever order: every accepted sequence ends once, and no budget is exceeded at any step."""

import math
from functools import partial
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.core.generation import Priority
from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.errors import ContextLengthExceeded, Overloaded

from .kept_prefixes import Text
from .simulated_device import DeviceCost, Request, Simulation

PRIORITIES: tuple[Priority, ...] = get_args(Priority)

POLICIES = st.builds(
    SchedulerPolicy,
    max_num_seqs=st.integers(1, 5),
    max_queue=st.integers(1, 12),
    kv_budget_bytes=st.one_of(st.none(), st.integers(60, 400)),
    target_gap_s=st.sampled_from([0.02, 0.1]),
    min_prefill_chunk=st.integers(1, 16),
    max_prefill_chunk=st.integers(16, 64),
    ageing_s=st.sampled_from([0.2, 10.0]),
    admission_window_s=st.sampled_from([0.0, 0.008, 0.05]),
)

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "add", "add", "fork", "abort", "pause", "pause", "resume", "hiccup", "memory", "forget"]
        ),
        st.floats(0, 0.2),  # seconds since the event before
        st.integers(1, 60),  # tokens of the prompt
        st.integers(1, 40),  # tokens of the reply
        st.integers(0, 10_000),  # who
    ),
    max_size=40,
)


class Story:
    """Turns events into requests and commands at their times."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.refused: list[str] = []

    def act(self, kind: str, prompt: int, reply: int, who: int) -> None:
        accepted = self.simulation.accepted
        if kind in ("add", "fork"):
            parent = accepted[who % len(accepted)] if kind == "fork" and accepted else None
            self.submit(parent, prompt, reply, who)
        elif kind == "memory":
            self.simulation.set_kv_budget(who % 500, free=prompt - 20 if who % 2 else math.inf)
        elif kind == "forget":
            self.simulation.prefixes.forget()
            self.simulation.encodings.forget()
        elif kind == "hiccup":
            self.simulation.slow_steps[len(self.simulation.steps) + who % 3] = 1.0
        elif accepted:
            command = {
                "abort": self.simulation.abort,
                "pause": self.simulation.pause,
                "resume": self.simulation.resume,
            }[kind]
            command(accepted[who % len(accepted)].id)

    def submit(self, parent: Request | None, prompt: int, reply: int, who: int) -> None:
        simulation = self.simulation
        request = Request(
            f"r{len(simulation.accepted) + len(self.refused)}",
            parent.prompt if parent else prompt,
            reply,
            reply + who % 3 * 20,
            model=parent.model if parent else "abc"[who % 3],
            priority=PRIORITIES[who % 5],
            caller="xy"[who % 2],
            deadline=simulation.now + 0.3 if who % 7 == 0 else None,
            fork_of=parent.id if parent else None,
            text=parent.text if parent else _text(prompt, who),
            stops=(prompt // 3, prompt // 2) if who % 2 and prompt > 5 else (),
            images=parent.images if parent else _images(prompt, who),
        )
        try:
            simulation.submit(request)
        except (Overloaded, ContextLengthExceeded):
            self.refused.append(request.id)

    def resume_all(self) -> None:
        for request in self.simulation.accepted:
            self.simulation.resume(request.id)


def _images(prompt: int, who: int) -> tuple[ImageSpan, ...]:
    """Up to three, some of them side by side, and some larger than the largest chunk."""
    size, between = 1 + who % 11 + who % 13 // 12 * 20, who % 4
    starts = range(who % 5, prompt - size, size + between)
    return tuple(ImageSpan(start, start + size, whole=who % 3 == 0) for start in starts)[: who % 4]


def _text(length: int, who: int) -> Text:
    """Tokens that begin like those of others, and go on by themselves."""
    same = who % 70
    return (*[who % 2] * min(same, length), *((who, place) for place in range(same, length)))


@settings(max_examples=150, deadline=None)
@given(
    policy=POLICIES,
    events=EVENTS,
    ahead=st.booleans(),
    known=st.booleans(),
    seed=st.integers(0, 100),
    prefixes=st.booleans(),
)
def test_any_history_ends_every_sequence_once_within_all_budgets(
    policy: SchedulerPolicy,
    events: list[tuple[str, float, int, int, int]],
    ahead: bool,
    known: bool,
    seed: int,
    prefixes: bool,
) -> None:
    cost = DeviceCost(noise=0.2)
    simulation = Simulation(
        policy,
        {"a": cost, "b": cost, "c": cost},
        seed=seed,
        unbatchable=frozenset("c"),
        untrimmable=frozenset("bc"),
        ahead=ahead,
        check_load=True,
        known=known,
        prefixes=prefixes,
    )
    story = Story(simulation)
    time = 0.0
    for kind, delay, prompt, reply, who in events:
        time += delay
        simulation.at(time, partial(story.act, kind, prompt, reply, who))
    simulation.at(time + 1.0, story.resume_all)
    simulation.at(time + 1.0, partial(simulation.set_kv_budget, 100_000))
    simulation.run()
    assert all(request.ended is not None for request in simulation.accepted)
    for request in simulation.accepted:
        if request.ended == "finished":
            assert len(request.token_times) == request.reply
    load = simulation.scheduler.load()
    assert len(simulation.scheduler) == 0
    assert (load.queued, load.running, load.prefilling, load.paused) == (0, 0, 0, 0)
    assert (load.kv_held_bytes, load.kv_reserved_bytes) == (0, 0)
    assert load.preemptions >= simulation.referee.preemptions
    assert not any(simulation.scheduler.has_heirs(request.id) for request in simulation.accepted)
