"""Sending a workload to a target: closed loop, or open loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import assert_never

from mlx_serving.bench.records import Answer, Failure, Record
from mlx_serving.bench.target import RequestFailed, Target
from mlx_serving.bench.workload import Ask, Closed, Load, Open

OnDone = Callable[[], None]
"""Called when a request is over."""


class Generator:
    """Sends requests to one target. A request that takes longer than `timeout_s` fails with the code `timeout`."""

    def __init__(self, target: Target, *, timeout_s: float | None, on_done: OnDone = lambda: None) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._on_done = on_done

    async def run(self, asks: Sequence[Ask], load: Load, seed: int) -> list[Record]:
        """Send them all; returns a record for each, in their order. `seed` decides when they arrive, if that is left
        to chance."""
        match load:
            case Closed():
                return await self._closed(asks, load.concurrency)
            case Open():
                return await self._open(asks, load.times(len(asks), seed))
            case _:
                assert_never(load)

    async def send(self, ask: Ask, due_s: float | None = None) -> Record:
        """One request, now. It never raises what is wrong with the request or with the target."""
        sent_s = time.perf_counter()
        outcome = await self._outcome(ask)
        self._on_done()
        return Record(sent_s if due_s is None else due_s, sent_s, outcome)

    async def _closed(self, asks: Sequence[Ask], concurrency: int) -> list[Record]:
        waiting = iter(enumerate(asks))
        records: dict[int, Record] = {}

        async def client() -> None:
            for index, ask in waiting:
                records[index] = await self.send(ask)

        async with asyncio.TaskGroup() as clients:
            for _ in range(min(concurrency, len(asks))):
                clients.create_task(client())
        return [records[index] for index in range(len(asks))]

    async def _open(self, asks: Sequence[Ask], times: Sequence[float]) -> list[Record]:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[Record]] = []
            for ask, at in zip(asks, times, strict=True):
                due = began + at
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(group.create_task(self.send(ask, due)))
        return [task.result() for task in tasks]

    async def _outcome(self, ask: Ask) -> Answer | Failure:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._target.send(ask)
        except TimeoutError:
            return Failure("timeout", f"not answered within {self._timeout_s:g} s", time.perf_counter())
        except RequestFailed as error:
            return Failure(error.code, error.message, time.perf_counter())
