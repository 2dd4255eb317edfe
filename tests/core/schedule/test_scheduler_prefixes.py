"""Nobody computes what is kept, or what somebody else computes just now."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_serving.core.schedule.scheduling import Admission, SchedulerPolicy, Step
from mlx_serving.core.scheduler import Scheduler

from .kept_prefixes import KeptPrefixes, Text
from .simulated_device import DeviceCost, Request, Simulation

POLICY = SchedulerPolicy(max_num_seqs=4, max_prefill_chunk=32, target_gap_s=60.0, max_step_s=60.0)


class Bench:
    """A scheduler of the models "m" and "exact", whose sequences begin with as many common tokens as each says."""

    def __init__(self, policy: SchedulerPolicy = POLICY) -> None:
        self.prefixes = KeptPrefixes({"exact"})
        self.scheduler = Scheduler(policy, self.prefixes)
        for model in ("m", "exact"):
            exact = model == "exact"
            self.scheduler.add_model(
                model, kv_bytes_per_token=1, batchable=True, trimmable=not exact, exact_prefixes=exact
            )
        self.now = 100.0

    def add(self, name: str, same: int, own: int, *, model: str = "m", max_tokens: int = 50, **how: Any) -> None:
        text: Text = (*range(same), *((name, place) for place in range(own)))
        self.prefixes.open(name, model, text)
        self.scheduler.add(name, model, prompt_tokens=len(text), max_tokens=max_tokens, now=self.now, **how)

    def step(self) -> Step:
        step = self.scheduler.schedule(self.now)
        assert step is not None
        self.now += 0.01
        for chunk in step.prefill:
            self.prefixes.keep(chunk.id, chunk.start + chunk.count - chunk.last, whole=chunk.last or chunk.shared)
        self.scheduler.update(step, 0.01)
        return step

    def held(self) -> int:
        return self.scheduler.load().queued


def spans(step: Step) -> list[tuple[str, int, int]]:
    return [(chunk.id, chunk.start, chunk.count) for chunk in step.prefill]


@pytest.mark.parametrize("model", ["m", "exact"])
def test_what_is_kept_is_not_computed(model: str) -> None:
    bench = Bench()
    bench.add("a", 31, 0, model=model)
    bench.step()
    bench.add("b", 31, 20, model=model)
    step = bench.step()
    assert step.admitted == (Admission("b", cached=30),)  # of "a", the last token was computed when it began to decode
    assert spans(step) == [("b", 30, 21)]


@pytest.mark.parametrize("model", ["m", "exact"])
def test_who_begins_like_one_that_is_being_computed_waits_for_what_they_share(model: str) -> None:
    bench = Bench()
    bench.add("a", 60, 60, model=model)
    bench.step()
    bench.add("b", 60, 10, model=model)
    step = bench.step()
    # Where states are kept, a chunk ends where the other one begins.
    assert spans(step) == [("a", 32, 28 if model == "exact" else 32)]
    assert step.prefill[0].shared
    assert step.admitted == ()
    assert bench.step().admitted == (Admission("b", cached=60),)


def test_of_several_who_begin_alike_one_computes() -> None:
    bench = Bench()
    for name in "abcd":
        bench.add(name, 30, 2)
    assert spans(bench.step()) == [("a", 0, 32)]
    assert spans(bench.step()) == [(name, 30, 2) for name in "bcd"]


def test_where_states_are_kept_one_who_shares_a_whole_prompt_waits_for_its_end() -> None:
    bench = Bench()
    bench.add("a", 40, 0, model="exact")
    bench.add("b", 40, 0, model="exact")
    assert spans(bench.step()) == [("a", 0, 32)]
    assert spans(bench.step()) == [("a", 32, 8)]
    step = bench.step()
    assert (step.admitted, spans(step)) == ((Admission("b", cached=39),), [("b", 39, 1)])


@pytest.mark.parametrize("how", ["abort", "pause"])
def test_who_waits_for_one_that_stops_computes_by_itself(how: str) -> None:
    bench = Bench()
    bench.add("a", 60, 60)
    bench.step()
    bench.add("b", 60, 1)
    bench.step()
    assert bench.held() == 1
    getattr(bench.scheduler, how)("a")
    step = bench.step()
    assert [chunk.id for chunk in step.prefill] == ["b"]
    assert step.prefill[0].start in (32, 60)


def test_who_waits_may_go() -> None:
    bench = Bench()
    bench.add("a", 90, 0)
    bench.step()
    bench.add("b", 90, 1)
    bench.step()
    assert bench.scheduler.abort("b")
    bench.step()
    assert bench.scheduler.sequences("m") == ["a"]


def test_nobody_waits_for_one_who_is_less_urgent() -> None:
    bench = Bench()
    bench.add("a", 100, 0, priority="low")
    bench.step()
    bench.add("b", 100, 1, priority="high")
    assert bench.step().admitted == (Admission("b", cached=32),)


def test_nobody_waits_for_less_than_a_chunk() -> None:
    bench = Bench()
    bench.add("a", 15, 60)
    bench.step()
    bench.add("b", 15, 1)
    assert [admission.id for admission in bench.step().admitted] == ["b"]


def test_nobody_waits_for_a_state_that_has_passed() -> None:
    bench = Bench()
    bench.add("a", 20, 80, model="exact")
    bench.step()
    bench.add("b", 20, 10, model="exact")
    assert bench.step().admitted == (Admission("b"),)


def test_what_others_wait_for_is_computed_before_what_is_longer() -> None:
    for waits in (False, True):
        bench = Bench()
        bench.add("eldest", 0, 2000)
        bench.add("a", 100, 900)
        bench.add("shorter", 0, 500)
        bench.step()
        if waits:
            bench.add("b", 100, 1)
        turns = {bench.step().prefill[0].id for _ in range(2)}  # every other one is the eldest's
        assert turns - {"eldest"} == {"a" if waits else "shorter"}


def test_chunks_end_at_stops() -> None:
    bench = Bench()
    bench.add("a", 0, 50, stops=(20, 45))
    steps = [bench.step() for _ in range(3)]
    assert [spans(step)[0][1:] for step in steps] == [(0, 20), (20, 25), (45, 5)]
    assert [step.prefill[0].shared for step in steps] == [True, True, False]


def test_nobody_pays_for_what_is_kept() -> None:
    bench = Bench(SchedulerPolicy(max_num_seqs=1))
    bench.add("first", 200, 0, max_tokens=1, caller="x")
    while "first" in bench.scheduler:
        bench.step()
    bench.add("busy", 0, 8, max_tokens=1)
    for number in range(3):
        bench.add(f"y{number}", 0, 200, max_tokens=1, caller="y")
        bench.add(f"x{number}", 200, 1, max_tokens=1, caller="x")
    order: list[str] = []
    while len(bench.scheduler):
        order += [admission.id for admission in bench.step().admitted if admission.id != "busy"]
    assert order == ["y0", "y1", "x0", "x1", "x2", "y2"]


def test_kept_beginnings_count_as_memory_that_is_held() -> None:
    bench = Bench()
    bench.add("a", 31, 0, max_tokens=1)
    bench.step()
    bench.add("b", 31, 20)
    bench.step()
    load = bench.scheduler.load()
    assert load.kv_held_bytes == 51
    assert bench.scheduler.memory.spare == float("inf")
    bench.scheduler.memory.allow(kv_caches=1000, ceiling=1000, prefill=100)
    assert bench.scheduler.memory.spare == 1000 - load.kv_reserved_bytes
    bench.scheduler.memory.allow(kv_caches=10, ceiling=1000, prefill=100)
    assert bench.scheduler.memory.spare == 0


def test_users_of_one_system_prompt_compute_it_once_however_they_come() -> None:
    for gap_s in (0.0, 0.004, 0.1):
        simulation = Simulation(
            SchedulerPolicy(max_num_seqs=16), {"m": DeviceCost(noise=0.0)}, prefixes=True, check_load=True
        )
        for number in range(16):
            text = (*range(400), *((number, place) for place in range(20)))
            simulation.submit_at(number * gap_s, Request(f"r{number}", 420, 5, 20, text=text))
        simulation.run()
        computed = sum(step.prefill_tokens for _, _, step in simulation.steps)
        assert computed <= (400 + 16 * 20) * 1.05
        assert sorted(request.cached for request in simulation.accepted) == [0] + [400] * 15
