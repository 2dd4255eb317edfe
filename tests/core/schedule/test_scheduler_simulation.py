"""Bounds on latency, fairness and throughput, over thousands of virtual seconds of a device with noise."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import get_args

import pytest

from mlx_serving.core.generation import Priority
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.errors import Overloaded

from .simulated_device import DeviceCost, Request, Simulation

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
WARM_S = 20.0


def arrive(simulation: Simulation, rate: float, until: float, make: Callable[[int], Request]) -> list[Request]:
    """Requests come as a Poisson process of `rate` a second; those refused are returned."""
    refused: list[Request] = []

    def submit(request: Request) -> None:
        try:
            simulation.submit(request)
        except Overloaded:
            refused.append(request)

    time = 0.0
    for number in count():
        time += simulation.random.expovariate(rate)
        if time > until:
            return refused
        simulation.at(time, partial(submit, make(number)))
    raise AssertionError


def keep_busy(simulation: Simulation, until: float, streams: int, make: Callable[[str, int], Request]) -> None:
    """Clients of each model that send their next request as soon as the last has ended."""
    numbers = count()

    def top_up() -> None:
        for model in simulation.costs:
            for _ in range(streams - len(simulation.scheduler.sequences(model))):
                simulation.submit(make(model, next(numbers)))
        if simulation.now < until:
            simulation.at(simulation.now + 0.02, top_up)

    simulation.at(0.0, top_up)


def percentile(values: Iterator[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def every_ending_is_told_once(simulation: Simulation) -> bool:
    return all(request.ended is not None for request in simulation.accepted) and len(simulation.scheduler) == 0


def chat(simulation: Simulation, number: int, model: str = "m", longest_prompt: int = 600) -> Request:
    random = simulation.random
    reply = random.randint(20, 200)
    return Request(
        f"{model} chat {number}", random.randint(10, longest_prompt), reply, max_tokens=max(reply, 300), model=model
    )


@pytest.mark.parametrize("ahead", [False, True])
def test_the_gap_of_running_streams_stays_under_its_target_beside_long_prompts(ahead: bool) -> None:
    simulation = Simulation(SchedulerPolicy(), {"m": DeviceCost()}, seed=1, ahead=ahead)
    simulation.slow_steps = {0: 3.0, 7: 1.0}  # kernels are compiled

    def make(number: int) -> Request:
        if number % 20 == 0:
            return Request(f"long {number}", 8000, 60, max_tokens=100)
        return chat(simulation, number)

    arrive(simulation, rate=1.1, until=1500.0, make=make)
    simulation.run()
    gaps = [gap for request in simulation.accepted for gap in request.gaps(WARM_S)]
    assert len(gaps) > 100_000
    assert percentile(iter(gaps), 0.99) < 1.1 * 0.1
    assert max(gaps) < 1.5 * 0.1
    assert simulation.busy("m") / simulation.now > 0.8
    assert every_ending_is_told_once(simulation)


def test_a_slow_device_that_cannot_keep_the_target_still_computes_prompts() -> None:
    slow = DeviceCost(fixed=0.05, row=0.02, token=0.015, token_context=0.0)
    simulation = Simulation(SchedulerPolicy(), {"m": slow}, seed=2)
    for number in range(8):
        simulation.submit_at(0.0, Request(f"stream {number}", 10, 2000, max_tokens=2000))
    newcomer = Request("newcomer", 600, 1, max_tokens=1)
    simulation.submit_at(100.0, newcomer)
    simulation.run(until=200.0)
    alone = 600 * slow.token
    assert newcomer.ttft < 1.4 * alone
    stalled = max(gap for request in simulation.accepted[:8] for gap in request.gaps(WARM_S))
    assert stalled < 0.15 * alone


def test_a_burst_of_first_requests_is_not_computed_in_smallest_chunks() -> None:
    """Nothing is known of the device, and no step decodes alone before the last prompt is done."""
    cost = DeviceCost(fixed=0.05, row=0.003, token=0.002, token_context=0.0)
    simulation = Simulation(SchedulerPolicy(), {"m": cost}, seed=12)
    for number in range(8):
        simulation.submit_at(0.0, Request(str(number), 64, 100, max_tokens=100))
    simulation.run()
    assert max(request.ttft for request in simulation.accepted) < 2 * 8 * 64 * cost.token


def test_a_short_prompt_beside_a_long_one_waits_for_few_chunks_only() -> None:
    simulation = Simulation(SchedulerPolicy(), {"m": DeviceCost()}, seed=3)
    simulation.submit_at(0.0, Request("stream", 10, 4000, max_tokens=4000))
    simulation.submit_at(5.0, Request("warm", 5000, 1, max_tokens=1))
    shorts = [Request(f"short {number}", 30, 5, max_tokens=5) for number in range(10)]
    simulation.submit_at(20.0, Request("long", 20_000, 5, max_tokens=5))
    for number, short in enumerate(shorts):
        simulation.submit_at(21.0 + number, short)
    simulation.run(until=60.0)
    assert max(short.ttft for short in shorts) < 0.4


def test_a_long_prompt_goes_on_under_a_stream_of_short_ones() -> None:
    simulation = Simulation(SchedulerPolicy(max_num_seqs=64), {"m": DeviceCost()}, seed=4)
    arrive(simulation, 4.0, 300.0, lambda number: Request(f"short {number}", 450, 2, max_tokens=2))
    long = Request("long", 3000, 2, max_tokens=2)
    simulation.submit_at(50.0, long)
    simulation.run(until=300.0)
    assert long.token_times
    assert long.ttft < 20 * 3000 * 0.0005


@pytest.mark.parametrize(
    ("costs", "unbatchable"),
    [
        ((DeviceCost(), DeviceCost()), frozenset[str]()),
        ((DeviceCost(fixed=0.005), DeviceCost(fixed=0.04)), frozenset[str]()),
        ((DeviceCost(), DeviceCost()), frozenset("b")),
    ],
    ids=["equal", "one slower", "one unbatched"],
)
def test_two_busy_models_share_the_device_equally(
    costs: tuple[DeviceCost, DeviceCost], unbatchable: frozenset[str]
) -> None:
    policy = SchedulerPolicy()
    simulation = Simulation(policy, dict(zip("ab", costs, strict=True)), seed=5, unbatchable=unbatchable)
    keep_busy(simulation, 600.0, 4, lambda model, number: chat(simulation, number, model, longest_prompt=2000))
    simulation.run(until=600.0)
    a, b = simulation.busy("a", since=WARM_S), simulation.busy("b", since=WARM_S)
    assert a / (a + b) == pytest.approx(0.5, abs=0.02)
    gaps = [gap for request in simulation.accepted for gap in request.gaps(WARM_S)]
    # A stream waits for a step of each model. Decoding alone may take so long that prefill brings about longer gaps.
    decode_s = max(
        (cost.fixed + 4 * cost.row) if model not in unbatchable else 4 * (cost.fixed + cost.row)
        for model, cost in simulation.costs.items()
    )
    longest = max(policy.target_gap_s, decode_s / (1 - policy.min_prefill_share))
    assert percentile(iter(gaps), 0.95) < 2 * longest
    assert max(gaps) < 3 * longest
    if costs[0] == costs[1] and not unbatchable:
        steps = [step.model for _, _, step in simulation.steps]
        assert 0.4 < steps.count("a") / len(steps) < 0.6


def test_two_busy_models_share_by_weight() -> None:
    simulation = Simulation(
        SchedulerPolicy(), {"a": DeviceCost(), "b": DeviceCost()}, seed=6, weights={"a": 3.0, "b": 1.0}
    )
    keep_busy(simulation, 300.0, 4, lambda model, number: chat(simulation, number, model))
    simulation.run(until=300.0)
    a, b = simulation.busy("a", since=WARM_S), simulation.busy("b", since=WARM_S)
    assert a / (a + b) == pytest.approx(0.75, abs=0.02)


def test_under_overload_priorities_hold_nobody_starves_and_refusals_say_when_to_come_back() -> None:
    policy = SchedulerPolicy(max_num_seqs=8, max_queue=64)
    simulation = Simulation(policy, {"m": DeviceCost()}, seed=7)
    random = simulation.random

    def make(number: int) -> Request:
        request = chat(simulation, number)
        request.priority = random.choice(PRIORITIES)
        request.caller = random.choice("xyz")
        if random.random() < 0.1:
            simulation.at(random.uniform(0, 2000), partial(simulation.abort, request.id))
        return request

    refused = arrive(simulation, 3.0, 2000.0, make)
    simulation.run()
    assert refused
    assert every_ending_is_told_once(simulation)
    served = {
        priority: [one for one in simulation.accepted if one.priority == priority and one.token_times]
        for priority in PRIORITIES
    }
    medians = {priority: percentile((one.ttft for one in served[priority]), 0.5) for priority in PRIORITIES}
    # Who has waited for an ageing time is as good as the next priority: neighbours may come out alike.
    for one, other in zip(PRIORITIES, PRIORITIES[2:], strict=False):
        assert medians[one] < medians[other]
    assert percentile((one.ttft for one in served["critical"]), 0.99) < 1.5
    for preemptible, priority in enumerate(PRIORITIES):
        assert max(one.preemptions for one in served[priority]) <= preemptible
    # Nobody who comes four ageing times later goes before a background request: then the queue is in its way only.
    queue_s = (policy.max_num_seqs + policy.max_queue) * simulation.now / len(simulation.accepted)
    waits = [one.ttft for one in simulation.accepted if one.token_times]
    assert max(waits) < 4 * policy.ageing_s + 2 * queue_s
    assert simulation.busy("m") / simulation.now > 0.99


def test_a_greedy_caller_does_not_take_the_share_of_a_modest_one() -> None:
    simulation = Simulation(SchedulerPolicy(max_num_seqs=4), {"m": DeviceCost()}, seed=8)

    def make(number: int) -> Request:
        request = chat(simulation, number)
        request.caller = "modest" if number % 10 == 0 else "greedy"
        return request

    arrive(simulation, 2.5, 600.0, make)
    simulation.run(until=600.0)
    waits = {
        caller: percentile((one.ttft for one in simulation.accepted if one.caller == caller and one.token_times), 0.5)
        for caller in ("modest", "greedy")
    }
    assert waits["modest"] < 5.0 < waits["greedy"]


def greedy_makespan(cost: DeviceCost, jobs: list[tuple[int, int]], slots: int) -> float:
    """How long a scheduler takes that computes whole prompts at once and knows no stream to disturb."""
    waiting = jobs[::-1]
    running: list[int] = []
    time = 0.0
    while waiting or running:
        started = [waiting.pop() for _ in range(min(slots - len(running), len(waiting)))]
        time += cost.fixed + cost.row * len(running)
        time += sum(prompt * (cost.token + cost.token_context * prompt / 2) for prompt, _ in started)
        running = [left - 1 for left in (*running, *(reply for _, reply in started)) if left > 1]
    return time


@pytest.mark.parametrize("ahead", [False, True])
def test_throughput_is_within_two_percent_of_the_greedy_maximum(ahead: bool) -> None:
    cost = DeviceCost(noise=0.0)
    simulation = Simulation(SchedulerPolicy(max_queue=1000), {"m": cost}, seed=9, ahead=ahead)
    jobs = [(simulation.random.randint(10, 1500), simulation.random.randint(20, 300)) for _ in range(600)]
    for number, (prompt, reply) in enumerate(jobs):
        simulation.submit(Request(str(number), prompt, reply, max_tokens=400))
    simulation.run()
    assert greedy_makespan(cost, jobs, 16) / simulation.now > 0.98


def test_short_memory_is_used_without_thrashing() -> None:
    cost = DeviceCost(noise=0.02)
    makespan: dict[int | None, float] = {}
    for budget in (None, 9000):
        simulation = Simulation(SchedulerPolicy(max_queue=1000, kv_budget_bytes=budget), {"m": cost}, seed=10)
        random = simulation.random
        for number in range(600):
            reply = min(1 + int(random.expovariate(1 / 150)), 1500)
            simulation.submit(Request(str(number), random.randint(10, 1000), reply, max_tokens=1500))
        simulation.run()
        makespan[budget] = simulation.now
        assert every_ending_is_told_once(simulation)
        assert max(request.preemptions for request in simulation.accepted) <= 2
        assert simulation.referee.preemptions < 0.05 * 600
    # Reserving max_tokens would let 4 sequences run at a time here, and take half as long again as this.
    assert makespan[9000] is not None
    assert makespan[9000] < 1.3 * makespan[None]


@pytest.mark.parametrize("ahead", [False, True])
def test_readers_who_stall_and_leave_cost_the_others_nothing_that_stays(ahead: bool) -> None:
    simulation = Simulation(SchedulerPolicy(kv_budget_bytes=12_000), {"m": DeviceCost()}, seed=11, ahead=ahead)
    random = simulation.random

    def make(number: int) -> Request:
        request = chat(simulation, number)
        if number % 3 == 0:
            stall = random.uniform(0, 1000)
            simulation.at(stall, partial(simulation.pause, request.id))
            simulation.at(stall + random.expovariate(0.2), partial(simulation.resume, request.id))
        if number % 5 == 0:
            request.deadline = random.uniform(0, 1000)
        return request

    def stall(request: Request) -> None:
        if random.random() < 0.002:
            simulation.pause(request.id)
            simulation.at(simulation.now + random.expovariate(0.5), partial(simulation.resume, request.id))

    simulation.on_token = stall
    arrive(simulation, 1.0, 1000.0, make)
    simulation.run()
    assert {request.ended for request in simulation.accepted} == {"finished", "expired"}
    assert every_ending_is_told_once(simulation)
    load = simulation.scheduler.load()
    assert (load.kv_held_bytes, load.kv_reserved_bytes) == (0, 0)
