"""The thin layers: limits, deadline, readmission."""

from __future__ import annotations

import asyncio

import pytest

from mlx_serving.core.retry import BackoffPolicy, RetryPolicy
from mlx_serving.engine.deadline import DeadlineBackend
from mlx_serving.engine.limits import LimitsBackend
from mlx_serving.engine.readmission import ReadmissionBackend
from mlx_serving.errors import DeadlineExceeded, InvalidRequest, WorkerDied, WorkerGaveUp

from .harness import collect
from .scripted import WHOLE, Script, ScriptedBackend, request

AT_ONCE = RetryPolicy(max_attempts=3, backoff=BackoffPolicy(initial_delay_s=0, max_delay_s=0))


async def test_max_tokens_above_the_limit_is_refused_before_anything_is_asked() -> None:
    inner = ScriptedBackend()
    with pytest.raises(InvalidRequest, match="at most 10 here, got 11") as caught:
        async with LimitsBackend(inner, 10).generate(request(max_tokens=11)):
            pytest.fail("the block must not begin")
    assert caught.value.details == {"field": "max_tokens", "limit": 10, "given": 11}
    assert inner.requests == []


@pytest.mark.parametrize("max_tokens", [None, 1, 10])
async def test_max_tokens_within_the_limit_passes(max_tokens: int | None) -> None:
    asked = request(max_tokens=max_tokens)
    inner = ScriptedBackend()
    async with LimitsBackend(inner, 10).generate(asked) as deltas:
        assert await collect(deltas) == list(WHOLE)
    assert inner.requests == [asked]


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


async def test_a_request_that_a_dying_worker_had_not_accepted_is_offered_again() -> None:
    inner = ScriptedBackend([Script(at_entry=WorkerDied("gone")), Script(at_entry=WorkerDied("again")), Script()])
    asked = request()
    async with ReadmissionBackend(inner, AT_ONCE).generate(asked) as deltas:
        assert await collect(deltas) == list(WHOLE)
    assert inner.requests == [asked] * 3
    assert inner.open == 0


async def test_attempts_are_limited() -> None:
    last = WorkerDied("third")
    inner = ScriptedBackend([Script(at_entry=WorkerDied("1")), Script(at_entry=WorkerDied("2")), Script(at_entry=last)])
    with pytest.raises(WorkerDied) as caught:
        async with ReadmissionBackend(inner, AT_ONCE).generate(request()):
            pytest.fail("the block must not begin")
    assert caught.value is last
    assert len(inner.requests) == 3


@pytest.mark.parametrize("error", [WorkerGaveUp("no more"), InvalidRequest("bad"), DeadlineExceeded("late")])
async def test_other_errors_are_not_offered_again(error: Exception) -> None:
    inner = ScriptedBackend([Script(at_entry=error)])
    with pytest.raises(type(error)):
        async with ReadmissionBackend(inner, AT_ONCE).generate(request()):
            pytest.fail("the block must not begin")
    assert len(inner.requests) == 1


async def test_a_stream_that_was_accepted_is_not_offered_again() -> None:
    inner = ScriptedBackend([Script(deltas=(), after=WorkerDied("gone"))])
    async with ReadmissionBackend(inner, AT_ONCE).generate(request()) as deltas:
        with pytest.raises(WorkerDied):
            await collect(deltas)
    assert len(inner.requests) == 1


async def test_cancelling_between_two_attempts_leaves_nothing_open() -> None:
    patient = RetryPolicy(backoff=BackoffPolicy(initial_delay_s=3600, max_delay_s=3600))
    inner = ScriptedBackend([Script(at_entry=WorkerDied("gone"))])

    async def consume() -> None:
        async with ReadmissionBackend(inner, patient).generate(request()):
            pytest.fail("the block must not begin")

    task = asyncio.create_task(consume())
    await inner.asked(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inner.open == 0
