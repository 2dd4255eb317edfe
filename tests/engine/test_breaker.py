"""The circuit breaker as a layer: what it counts, and what callers get."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.circuit_breaker import CircuitBreakerPolicy
from mlx_serving.engine.breaker import BreakerBackend
from mlx_serving.errors import (
    Aborted,
    CircuitOpen,
    EngineError,
    GenerationError,
    InvalidRequest,
    Overloaded,
    WorkerDied,
    WorkerGaveUp,
)
from mlx_serving.telemetry.events import CircuitChanged, EventBus

from ..event_log import EventLog
from .harness import collect
from .scripted import Script, ScriptedBackend, request

SOON = CircuitBreakerPolicy(failure_threshold=2, recovery_timeout_s=1e-6, half_open_success_threshold=1)
LATE = CircuitBreakerPolicy(failure_threshold=2, recovery_timeout_s=3600)


async def call(breaker: BreakerBackend) -> EngineError | None:
    try:
        async with breaker.generate(request()) as deltas:
            await collect(deltas)
    except EngineError as error:
        return error
    return None


async def test_it_opens_after_enough_failures_and_says_when_to_come_back() -> None:
    bus = EventBus()
    log = EventLog(bus)
    inner = ScriptedBackend([Script(at_entry=WorkerDied("1")), Script(after=GenerationError("2")), Script()])
    breaker = BreakerBackend(inner, LATE, bus)
    assert isinstance(await call(breaker), WorkerDied)
    assert not breaker.is_open
    assert isinstance(await call(breaker), GenerationError)
    assert breaker.is_open
    refused = await call(breaker)
    assert isinstance(refused, CircuitOpen)
    assert refused.retry_after == pytest.approx(3600, abs=60)
    assert refused.details["retry_after"] == round(refused.retry_after, 3)
    assert len(inner.requests) == 2
    assert [(event.previous, event.current) for event in log.of(CircuitChanged)] == [("closed", "open")]


async def test_it_closes_again_when_a_probe_succeeds() -> None:
    bus = EventBus()
    log = EventLog(bus)
    inner = ScriptedBackend([Script(at_entry=WorkerDied("1")), Script(at_entry=WorkerDied("2")), Script()])
    breaker = BreakerBackend(inner, SOON, bus)
    await call(breaker)
    await call(breaker)
    assert await call(breaker) is None
    assert breaker.state == "closed"
    assert [event.current for event in log.of(CircuitChanged)] == ["open", "half-open", "closed"]


async def test_one_death_counts_once_however_many_streams_it_took() -> None:
    death = WorkerDied("all of them")
    gate = asyncio.Event()
    inner = ScriptedBackend([Script(delta_gate=gate, after=death)])
    breaker = BreakerBackend(inner, LATE, EventBus())
    calls = [asyncio.create_task(call(breaker)) for _ in range(5)]
    await inner.entered.wait()
    gate.set()
    assert await asyncio.gather(*calls) == [death] * 5
    assert not breaker.is_open
    inner.scripts = [Script(after=WorkerDied("another"))]
    await call(breaker)
    assert breaker.is_open


async def test_a_failure_counts_even_if_the_caller_takes_it_inside_of_the_block() -> None:
    inner = ScriptedBackend([Script(after=WorkerDied("1")), Script(after=WorkerDied("2"))])
    breaker = BreakerBackend(inner, LATE, EventBus())
    for _ in range(2):
        async with breaker.generate(request()) as deltas:
            with pytest.raises(WorkerDied):
                await collect(deltas)
    assert breaker.is_open


async def test_a_worker_that_was_given_up_keeps_its_own_error() -> None:
    breaker = BreakerBackend(ScriptedBackend([Script(at_entry=WorkerGaveUp("pause"))]), LATE, EventBus())
    for _ in range(5):
        assert isinstance(await call(breaker), WorkerGaveUp)
    assert not breaker.is_open


@pytest.mark.parametrize("error", [InvalidRequest("bad"), Overloaded("full", retry_after=1), Aborted("left")])
async def test_errors_that_are_no_fault_of_the_worker_do_not_count(error: EngineError) -> None:
    breaker = BreakerBackend(ScriptedBackend([Script(at_entry=error)]), LATE, EventBus())
    for _ in range(5):
        assert await call(breaker) is error
    assert not breaker.is_open


async def test_a_probe_that_is_cancelled_frees_its_place() -> None:
    gate = asyncio.Event()
    died = [Script(at_entry=WorkerDied("1")), Script(at_entry=WorkerDied("2"))]
    inner = ScriptedBackend([*died, Script(entry_gate=gate), Script()])
    breaker = BreakerBackend(inner, SOON, EventBus())
    await call(breaker)
    await call(breaker)
    probe = asyncio.create_task(call(breaker))
    await inner.asked(3)
    assert isinstance(await call(breaker), CircuitOpen)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert await call(breaker) is None
    assert breaker.state == "closed"


@given(st.lists(st.sampled_from(["good", "died", "bad request", "left"]), max_size=30))
def test_every_admitted_call_is_settled_whatever_happens(outcomes: list[str]) -> None:
    async def run() -> None:
        inner = ScriptedBackend()
        breaker = BreakerBackend(inner, SOON, EventBus())
        for outcome in outcomes:
            match outcome:
                case "died":
                    inner.scripts = [Script(after=WorkerDied("x"))]
                case "bad request":
                    inner.scripts = [Script(at_entry=InvalidRequest("x"))]
                case _:
                    inner.scripts = [Script()]
            async with AsyncExitStack() as stack:
                stack.enter_context(suppress(EngineError))
                deltas = await stack.enter_async_context(breaker.generate(request()))
                if outcome != "left":
                    await collect(deltas)
            assert inner.open == 0
        inner.scripts = [Script()]
        # No place is taken for ever: the pause is over at once, so a good call is admitted and closes it.
        assert await call(breaker) is None
        assert breaker.state == "closed"

    asyncio.run(run())


async def test_forks_are_let_in_with_the_probe_that_they_belong_to() -> None:
    inner = ScriptedBackend([Script(at_entry=WorkerDied("1")), Script(at_entry=WorkerDied("2")), Script(), Script()])
    breaker = BreakerBackend(inner, SOON, EventBus())
    await call(breaker)
    await call(breaker)
    probe = replace(request(), request_id="probe")
    async with breaker.generate(probe) as deltas:
        with pytest.raises(CircuitOpen):
            await breaker.generate(replace(request(), request_id="other")).__aenter__()
        async with breaker.generate(replace(request(), request_id="fork", fork_of="probe")) as more:
            await collect(more)
        await collect(deltas)
    assert breaker.state == "closed"
