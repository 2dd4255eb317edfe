from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from mlx_serving.errors import Aborted, DeadlineExceeded, EngineClosed
from mlx_serving.server.http.in_flight import InFlight


class _Client:
    """The receiving side of a request whose body was read."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def _forever(
    in_flight: InFlight, client: _Client, entered: asyncio.Event, timeout_s: float | None = None
) -> None:
    async with in_flight.admit(client.receive, timeout_s):
        entered.set()
        await asyncio.Event().wait()


async def test_it_counts_what_is_running_and_tells_when_nothing_is() -> None:
    in_flight, client = InFlight(), _Client()
    await in_flight.wait_idle()
    async with in_flight.admit(client.receive, None):
        assert len(in_flight) == 1
        async with in_flight.admit(client.receive, None):
            assert len(in_flight) == 2
        idle = asyncio.create_task(in_flight.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()
    await idle
    assert len(in_flight) == 0


async def test_once_closed_it_admits_nothing_and_what_runs_goes_on() -> None:
    in_flight, client = InFlight(), _Client()
    async with in_flight.admit(client.receive, None):
        in_flight.close()
        with pytest.raises(EngineClosed):
            async with in_flight.admit(client.receive, None):
                pass
        assert len(in_flight) == 1
    assert in_flight.closed


async def test_a_client_that_leaves_ends_its_block() -> None:
    in_flight, client, entered = InFlight(), _Client(), asyncio.Event()
    task = asyncio.create_task(_forever(in_flight, client, entered))
    await entered.wait()
    client.leave()
    with pytest.raises(Aborted):
        await task
    assert len(in_flight) == 0


async def test_time_being_over_ends_the_block() -> None:
    with pytest.raises(DeadlineExceeded, match=r"longer than 0\.01 s"):
        await _forever(InFlight(), _Client(), asyncio.Event(), 0.01)


async def test_interrupting_ends_every_block_with_an_error_of_its_own() -> None:
    in_flight, client = InFlight(), _Client()
    entered = [asyncio.Event(), asyncio.Event()]
    tasks = [asyncio.create_task(_forever(in_flight, client, each)) for each in entered]
    for each in entered:
        await each.wait()
    in_flight.interrupt_all(lambda name: EngineClosed("stop"))
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, EngineClosed)
    assert isinstance(second, EngineClosed)
    assert first is not second


async def test_the_first_reason_counts() -> None:
    in_flight, client, entered = InFlight(), _Client(), asyncio.Event()
    task = asyncio.create_task(_forever(in_flight, client, entered))
    await entered.wait()
    in_flight.interrupt_all(lambda name: EngineClosed("first"))
    in_flight.interrupt_all(lambda name: Aborted("second"))
    with pytest.raises(EngineClosed, match="first"):
        await task


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    in_flight, client, entered = InFlight(), _Client(), asyncio.Event()
    task = asyncio.create_task(_forever(in_flight, client, entered))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await in_flight.wait_idle()


async def test_a_cancellation_from_elsewhere_wins_over_an_interruption() -> None:
    in_flight, client, entered = InFlight(), _Client(), asyncio.Event()
    task = asyncio.create_task(_forever(in_flight, client, entered))
    await entered.wait()
    in_flight.interrupt_all(lambda name: EngineClosed("stop"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_after_an_interruption_the_task_can_go_on() -> None:
    in_flight, client, entered = InFlight(), _Client(), asyncio.Event()

    async def answer() -> str:
        try:
            await _forever(in_flight, client, entered)
        except Aborted:
            await asyncio.sleep(0)
        return "went on"

    task = asyncio.create_task(answer())
    await entered.wait()
    client.leave()
    assert await task == "went on"
    assert task.cancelling() == 0
