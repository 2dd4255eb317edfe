"""The thin layers: limits, intake, deadline, recovery."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mlx_serving.core.generation import Delta
from mlx_serving.core.intake import Intake
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.engine.deadline import DeadlineBackend
from mlx_serving.engine.intake import IntakeBackend
from mlx_serving.engine.limits import LimitsBackend
from mlx_serving.engine.recovery import RecoveryBackend
from mlx_serving.errors import DeadlineExceeded, EngineError, InvalidRequest, Overloaded, WorkerDied, WorkerGaveUp
from mlx_serving.telemetry.events import EventBus

from .harness import collect
from .scripted import WHOLE, Script, ScriptedBackend, request


async def test_max_tokens_above_the_limit_is_refused_before_anything_is_asked() -> None:
    inner = ScriptedBackend()
    with pytest.raises(InvalidRequest, match="at most 10 here, got 11") as caught:
        async with LimitsBackend(inner, 10).generate(request(max_tokens=11)):
            pytest.fail("the block must not begin")
    assert caught.value.details == {"field": "max_tokens", "limit": 10, "given": 11}
    assert inner.requests == []


async def test_min_tokens_above_the_limit_is_refused_as_well() -> None:
    inner = ScriptedBackend()
    asked = request()
    asked = replace(asked, sampling=replace(asked.sampling, max_tokens=None, min_tokens=11))
    with pytest.raises(InvalidRequest, match="min_tokens must be at most 10 here, got 11"):
        async with LimitsBackend(inner, 10).generate(asked):
            pytest.fail("the block must not begin")
    assert inner.requests == []


@pytest.mark.parametrize("max_tokens", [None, 1, 10])
async def test_max_tokens_within_the_limit_passes(max_tokens: int | None) -> None:
    asked = request(max_tokens=max_tokens)
    inner = ScriptedBackend()
    async with LimitsBackend(inner, 10).generate(asked) as deltas:
        assert await collect(deltas) == list(WHOLE)
    assert inner.requests == [asked]


async def test_what_is_more_than_may_be_under_way_is_refused_before_anything_is_asked() -> None:
    gate = asyncio.Event()
    inner = ScriptedBackend([Script(delta_gate=gate)])
    backend = IntakeBackend(inner, Intake(SchedulerPolicy(max_num_seqs=1, max_queue=1)))

    async def whole() -> list[Delta]:
        async with backend.generate(request()) as deltas:
            return await collect(deltas)

    tasks = [asyncio.create_task(whole()) for _ in range(2)]
    await inner.asked(2)
    with pytest.raises(Overloaded, match="1 requests are waiting already"):
        await whole()
    assert len(inner.requests) == 2
    gate.set()
    assert await asyncio.gather(*tasks) == [list(WHOLE)] * 2
    assert await whole() == list(WHOLE)


@pytest.mark.parametrize("script", [Script(at_entry=WorkerDied("gone")), Script(after=WorkerDied("gone"))])
async def test_a_request_that_fails_gives_its_place_back(script: Script) -> None:
    backend = IntakeBackend(ScriptedBackend([script]), Intake(SchedulerPolicy(max_num_seqs=1, max_queue=1)))
    for _ in range(3):
        with pytest.raises(WorkerDied):
            async with backend.generate(request()) as deltas:
                await collect(deltas)


async def test_a_deadline_holds_at_entry() -> None:
    inner = ScriptedBackend([Script(entry_gate=asyncio.Event())])
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s") as caught:
        async with DeadlineBackend(inner, None).generate(request(timeout_s=0.01)):
            pytest.fail("the block must not begin")
    assert caught.value.details == {"timeout_s": 0.01}
    assert inner.open == 0


async def test_a_deadline_holds_in_mid_stream_after_what_was_there() -> None:
    inner = ScriptedBackend([Script(deltas=WHOLE[:1], delta_gate=asyncio.Event())])
    async with DeadlineBackend(inner, 0.05).generate(request()) as deltas:
        assert await anext(deltas) == WHOLE[0]
        with pytest.raises(DeadlineExceeded):
            await anext(deltas)
        assert inner.open == 1
    assert inner.open == 0


async def test_the_callers_own_timeout_counts_and_not_the_default() -> None:
    gate = asyncio.Event()
    backend = DeadlineBackend(ScriptedBackend([Script(delta_gate=gate)]), 1e-6)
    async with backend.generate(request(timeout_s=60)) as deltas:
        gate.set()
        assert await collect(deltas) == list(WHOLE)


async def test_without_a_timeout_there_is_no_deadline() -> None:
    async with DeadlineBackend(ScriptedBackend(), None).generate(request()) as deltas:
        assert await collect(deltas) == list(WHOLE)


async def test_the_time_that_the_caller_spends_between_deltas_is_not_interrupted() -> None:
    backend = DeadlineBackend(ScriptedBackend(), 0.01)
    async with backend.generate(request()) as deltas:
        await anext(deltas)
        expired = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, expired.set)
        await expired.wait()


def recovering(inner: ScriptedBackend) -> RecoveryBackend:
    return RecoveryBackend(inner, lambda _: None, EventBus())


async def test_a_request_goes_to_the_next_worker_as_often_as_one_dies_under_it() -> None:
    inner = ScriptedBackend([Script(at_entry=WorkerDied("gone"))] * 5 + [Script()])
    async with recovering(inner).generate(request()) as deltas:
        assert await collect(deltas) == list(WHOLE)
    assert {asked.delivered for asked in inner.requests} == {()}
    assert len({asked.sampling.seed for asked in inner.requests}) == 1
    assert inner.open == 0


async def test_a_stream_goes_on_behind_what_was_delivered() -> None:
    inner = ScriptedBackend([Script(deltas=WHOLE[:1], after=WorkerDied("gone")), Script(deltas=WHOLE[1:])])
    backend = recovering(inner)
    async with backend.generate(request()) as deltas:
        assert backend.active_streams == 1
        assert await collect(deltas) == list(WHOLE)
    assert [asked.delivered for asked in inner.requests] == [(), (1,)]
    assert (inner.open, backend.active_streams) == (0, 0)


@pytest.mark.parametrize("error", [WorkerGaveUp("no more"), InvalidRequest("bad"), DeadlineExceeded("late")])
async def test_other_errors_end_the_request(error: EngineError) -> None:
    inner = ScriptedBackend([Script(at_entry=error)])
    with pytest.raises(type(error)):
        async with recovering(inner).generate(request()):
            pytest.fail("the block must not begin")
    inner = ScriptedBackend([Script(deltas=(), after=error)])
    async with recovering(inner).generate(request()) as deltas:
        with pytest.raises(type(error)):
            await collect(deltas)
    assert len(inner.requests) == 1


async def test_a_full_queue_does_not_cost_a_stream_its_place() -> None:
    full = Overloaded("full", retry_after=0.001)
    inner = ScriptedBackend(
        [Script(deltas=WHOLE[:1], after=WorkerDied("gone")), Script(at_entry=full), Script(deltas=WHOLE[1:])]
    )
    async with recovering(inner).generate(request()) as deltas:
        assert await collect(deltas) == list(WHOLE)
    with pytest.raises(Overloaded):
        async with recovering(ScriptedBackend([Script(at_entry=full)])).generate(request()):
            pytest.fail("the block must not begin")


async def test_cancelling_between_two_workers_leaves_nothing_open() -> None:
    gate = asyncio.Event()
    inner = ScriptedBackend([Script(deltas=(), after=WorkerDied("gone")), Script(entry_gate=gate)])

    async def consume() -> None:
        async with recovering(inner).generate(request()) as deltas:
            await collect(deltas)

    task = asyncio.create_task(consume())
    await inner.asked(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inner.open == 0
