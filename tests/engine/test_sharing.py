"""Several who ask the same thing at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from mlx_serving.core.generation import Delta, FinishReason, GenerationRequest, SamplingParams, Served
from mlx_serving.engine.deadline import DeadlineBackend
from mlx_serving.engine.sharing import SharingBackend
from mlx_serving.errors import DeadlineExceeded, Overloaded, WorkerDied

from ..event_log import until
from .harness import collect
from .scripted import WHOLE, Script, ScriptedBackend, request

GREEDY = replace(request(), sampling=SamplingParams(temperature=0))


def _sharing(inner: ScriptedBackend) -> SharingBackend:
    return SharingBackend(inner, lambda model: f"{model}@1")


def _by(name: str, asked: GenerationRequest = GREEDY) -> GenerationRequest:
    return replace(asked, request_id=name, served=Served())


async def test_a_late_joiner_gets_the_stream_from_its_start() -> None:
    gate = asyncio.Event()
    inner = ScriptedBackend([Script(deltas=WHOLE[:2], delta_gate=gate, last=WHOLE[2])])
    sharing = _sharing(inner)
    first, late = _by("first"), _by("late")
    async with sharing.generate(first) as one:
        assert await anext(one) == WHOLE[0]
        assert await anext(one) == WHOLE[1]
        async with sharing.generate(late) as other:
            assert await anext(other) == WHOLE[0]
            gate.set()
            assert await collect(one) == list(WHOLE[2:])
            assert await collect(other) == list(WHOLE[1:])
    assert [each.request_id for each in inner.requests] == ["first"]
    assert (first.served, late.served) == (Served("miss"), Served("shared"))
    assert (sharing.shared, sharing.running, inner.open) == (1, 0, 0)


async def test_what_is_left_to_chance_is_computed_for_each() -> None:
    inner = ScriptedBackend()
    sharing = _sharing(inner)
    async with sharing.generate(_by("a", request())) as one, sharing.generate(_by("b", request())) as other:
        assert await collect(one) == await collect(other) == list(WHOLE)
    assert len(inner.requests) == 2


async def test_another_version_of_the_model_is_another_computation() -> None:
    inner, versions = ScriptedBackend(), ["1", "2"]
    sharing = SharingBackend(inner, lambda _: versions.pop(0))
    async with sharing.generate(_by("a")) as one, sharing.generate(_by("b")) as other:
        assert await collect(one) == await collect(other) == list(WHOLE)
    assert len(inner.requests) == 2


async def test_who_began_it_may_leave_and_the_others_get_it_all() -> None:
    gate = asyncio.Event()
    inner = ScriptedBackend([Script(deltas=WHOLE[:1], delta_gate=gate, last=WHOLE[2])])
    sharing = _sharing(inner)
    async with sharing.generate(_by("first")):
        other = sharing.generate(_by("other"))
        deltas = await other.__aenter__()
    assert inner.open == 1
    # The same id may come back while its old computation goes on.
    async with sharing.generate(_by("first")) as again:
        gate.set()
        assert await collect(again) == await collect(deltas) == [WHOLE[0], WHOLE[2]]
    await other.__aexit__(None, None, None)
    assert inner.open == 0


async def test_an_id_that_is_in_use_below_is_not_used_twice() -> None:
    inner = ScriptedBackend([Script(deltas=WHOLE[:1], delta_gate=asyncio.Event())])
    sharing = _sharing(inner)
    asked = replace(GREEDY, sampling=SamplingParams(seed=1))
    async with sharing.generate(_by("first")):
        other = sharing.generate(_by("other"))
        await other.__aenter__()
    async with sharing.generate(_by("first", asked)):
        assert [each.request_id for each in inner.requests] == ["first", "first+"]
    await other.__aexit__(None, None, None)


async def test_the_last_to_leave_ends_it_at_once() -> None:
    inner = ScriptedBackend([Script(deltas=WHOLE[:1], delta_gate=asyncio.Event())])
    sharing = _sharing(inner)
    async with sharing.generate(_by("a")) as one:
        async with sharing.generate(_by("b")) as other:
            await anext(other)
        assert inner.open == 1
        await anext(one)
    assert (inner.open, sharing.running) == (0, 0)


async def test_a_reader_who_waits_for_admission_may_leave_as_well() -> None:
    inner = ScriptedBackend([Script(entry_gate=asyncio.Event())])
    sharing = _sharing(inner)

    async def enter(name: str) -> None:
        async with sharing.generate(_by(name)):
            pytest.fail("it is never accepted")

    one, other = asyncio.create_task(enter("a")), asyncio.create_task(enter("b"))
    await inner.asked(1)
    one.cancel()
    await asyncio.wait([one])
    assert inner.open == 1
    other.cancel()
    await asyncio.wait([other])
    assert inner.open == 0


async def test_a_slow_reader_holds_up_nobody_and_without_a_fast_one_the_source_halts() -> None:
    many = tuple(Delta(str(number), (number,)) for number in range(200))
    source = _Counting(many)
    sharing = SharingBackend(source, str)
    async with sharing.generate(_by("slow")) as slow:
        assert await anext(slow) == many[0]
        async with sharing.generate(_by("fast")) as fast:
            assert (await collect(fast))[:-1] == list(many)
        assert (await collect(slow))[:-1] == list(many[1:])

    source.taken = 0
    async with sharing.generate(_by("alone")) as alone:
        await anext(alone)

        async def halted() -> bool:
            return source.taken >= 17

        await until(halted)
        for _ in range(50):
            await asyncio.sleep(0)
        assert source.taken == 17


async def test_what_it_is_refused_with_all_of_them_hear() -> None:
    gate = asyncio.Event()
    inner = ScriptedBackend([Script(entry_gate=gate, at_entry=Overloaded("full", retry_after=3)), Script()])
    sharing = _sharing(inner)

    async def enter(name: str) -> list[Delta]:
        async with sharing.generate(_by(name)) as deltas:
            return await collect(deltas)

    both = [asyncio.create_task(enter(name)) for name in "ab"]
    await inner.asked(1)
    gate.set()
    results = await asyncio.gather(*both, return_exceptions=True)
    assert [type(each) for each in results] == [Overloaded, Overloaded]
    assert await enter("c") == list(WHOLE)


async def test_what_it_fails_with_comes_after_what_was_there() -> None:
    inner = ScriptedBackend([Script(deltas=WHOLE[:1], after=WorkerDied("gone"))])
    sharing = _sharing(inner)
    async with sharing.generate(_by("a")) as one, sharing.generate(_by("b")) as other:
        for deltas in (one, other):
            assert await anext(deltas) == WHOLE[0]
            with pytest.raises(WorkerDied):
                await anext(deltas)


async def test_the_deadline_of_one_is_not_that_of_another() -> None:
    gate = asyncio.Event()
    inner = ScriptedBackend([Script(deltas=WHOLE[:1], delta_gate=gate, last=WHOLE[2])])
    outer = DeadlineBackend(_sharing(inner), None)
    async with outer.generate(replace(_by("patient"), timeout_s=60.0)) as patient:
        async with outer.generate(replace(_by("hasty"), timeout_s=0.02)) as hasty:
            assert await anext(hasty) == WHOLE[0]
            with pytest.raises(DeadlineExceeded):
                await anext(hasty)
        gate.set()
        assert await collect(patient) == [WHOLE[0], WHOLE[2]]
    assert inner.requests[0].timeout_s is None


class _Counting:
    """Counts the deltas that were asked for."""

    def __init__(self, deltas: tuple[Delta, ...]) -> None:
        self._all = deltas
        self.taken = 0

    def generate(self, request: GenerationRequest) -> _Counting:
        return self

    async def __aenter__(self) -> AsyncIterator[Delta]:
        return self._deltas()

    async def __aexit__(self, *_: object) -> None:
        pass

    async def _deltas(self) -> AsyncIterator[Delta]:
        for delta in self._all:
            self.taken += 1
            yield delta
        yield Delta("", (), FinishReason.STOP)
