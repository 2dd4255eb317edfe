"""Troubles of a real worker that no signal from outside makes: each is a pause, and every text is as without it."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mlx_serving.core.generation import Delta, GenerationRequest, TokenPrompt
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.telemetry.events import ErrorOccurred, StreamRecovered

from ..event_log import EventLog, until
from .harness import complete, request, running, send, serving, worker_pid
from .troubled_worker import Trouble

TOKENS = 200
CROWD = 6
HEARTBEATS = {"heartbeat_interval_s": 0.2, "heartbeat_timeout_s": 2.0}


def crowd() -> list[GenerationRequest]:
    """Greedy and seeded requests, some of which ask for log-probabilities, which make frames large."""
    asked = [request(f"r{number}", max_tokens=TOKENS) for number in range(CROWD)]
    return [
        replace(
            one, sampling=replace(one.sampling, temperature=0.9 * (at % 2), seed=at, logprobs=20 if at < 2 else None)
        )
        for at, one in enumerate(asked)
    ]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


@dataclass(slots=True)
class Scene:
    core: EngineCore
    trouble: Trouble
    expected: list[str]
    log: EventLog

    async def play(self, disturb: Callable[[], None]) -> None:
        """Complete the crowd; `disturb` is called when each of it has delivered something."""
        begun = 0

        async def one(asked: GenerationRequest) -> list[Delta]:
            nonlocal begun
            deltas: list[Delta] = []
            async with self.core.generate(asked) as stream:
                async for delta in stream:
                    deltas.append(delta)
                    if len(deltas) == 2:
                        begun += 1
                        if begun == CROWD:
                            disturb()
            return deltas

        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(one(each) for each in crowd()))
        assert [text_of(deltas) for deltas in answers] == self.expected
        assert self.log.of(ErrorOccurred) == []

    @property
    def recovered(self) -> int:
        return len(self.log.of(StreamRecovered))


@asynccontextmanager
async def scene(directory: Path, model: Path) -> AsyncGenerator[Scene]:
    trouble = Trouble(directory / "trouble")
    async with running(serving(model, worker={"python": trouble.as_python(), **HEARTBEATS})) as core:
        expected = [text_of(each) for each in await asyncio.gather(*(complete(core, one) for one in crowd()))]
        yield Scene(core, trouble, expected, EventLog(core.events))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("truncate", b""),
        ("corrupt", b""),
        ("garbage", b"nonsense\n"),
        ("garbage", b'{"jsonrpc": "2.0", "id": 1e999}\n'),
        ("garbage", b"\xc1\x00\x00\x00\x04\xff\xff\xff\xff"),
        ("garbage", bytes(range(128, 192)) * 100),
    ],
    ids=["truncated frame", "bytes missing", "nonsense", "nonsense in JSON", "nonsense in a frame", "no line"],
)
async def test_what_breaks_the_pipe_is_a_pause(tmp_path: Path, tiny_model: Path, name: str, content: bytes) -> None:
    async with scene(tmp_path, tiny_model) as stage:
        await stage.play(lambda: stage.trouble.order(name, content))
        assert stage.recovered == CROWD
        health = await stage.core.health()
        assert (health.status, health.worker.restarts) == ("healthy", 1)


async def test_a_worker_that_does_not_read_for_a_while_is_waited_for(tmp_path: Path, tiny_model: Path) -> None:
    async with scene(tmp_path, tiny_model) as stage:
        stage.trouble.order("deaf", "0.5")
        await stage.play(lambda: None)
        assert not stage.trouble.is_ordered("deaf")
        assert (stage.recovered, (await stage.core.health()).worker.restarts) == (0, 0)


async def test_a_slow_disk_is_no_hang_and_a_death_in_the_load_is_a_longer_pause(
    tmp_path: Path, tiny_model: Path
) -> None:
    async with scene(tmp_path, tiny_model) as stage:
        pid = await worker_pid(stage.core)
        stage.trouble.order("slow-disk", "0.05")
        stage.trouble.order("dying-load")
        await stage.play(lambda: send(pid, signal.SIGKILL))
        assert not stage.trouble.is_ordered("dying-load")
        assert stage.recovered == CROWD
        assert (await stage.core.health()).worker.restarts == 2


async def test_a_worker_that_gets_no_memory_is_followed_by_a_more_modest_one(tmp_path: Path, tiny_model: Path) -> None:
    async with scene(tmp_path, tiny_model) as stage:
        await stage.play(lambda: stage.trouble.order("no-memory"))
        assert stage.recovered == CROWD
        worker = (await stage.core.health()).worker
        assert (worker.restarts, worker.kv_share) == (1, 0.75)


async def test_a_worker_without_address_space_is_replaced(tmp_path: Path, tiny_model: Path) -> None:
    async with scene(tmp_path, tiny_model) as stage:
        pid = await worker_pid(stage.core)

        def squeeze() -> None:
            resource.prlimit(pid, resource.RLIMIT_AS, (1, 1))

        await stage.play(squeeze)
        # What it has may last it for this crowd, but not for a prompt that is much longer.
        long = replace(request("long"), prompt=TokenPrompt((1,) * 300))
        assert len(await complete(stage.core, long)) > 1
        assert (await stage.core.health()).worker.restarts <= 1


async def test_readers_that_stall_and_vanish_meanwhile_disturb_nobody(tmp_path: Path, tiny_model: Path) -> None:
    async with scene(tmp_path, tiny_model) as stage:

        async def vanish(number: int) -> None:
            async with stage.core.generate(request(f"vanishes{number}", max_tokens=4000)) as deltas:
                async for _ in deltas:
                    break

        async def stall(resumed: asyncio.Event) -> list[Delta]:
            async with stage.core.generate(crowd()[0]) as deltas:
                first = await anext(deltas)
                await resumed.wait()
                return [first, *[delta async for delta in deltas]]

        resumed = asyncio.Event()
        stalled = asyncio.create_task(stall(resumed))
        vanishing = [asyncio.create_task(vanish(number)) for number in range(4)]

        async def nobody_left() -> bool:
            return (await stage.core.health()).active_streams == 1

        stage.trouble.order("truncate")
        await asyncio.gather(*vanishing)
        await until(nobody_left)
        resumed.set()
        assert text_of(await stalled) == stage.expected[0]
        await stage.play(lambda: stage.trouble.order("garbage", b"nonsense\n"))
        assert (await stage.core.health()).worker.restarts == 2
