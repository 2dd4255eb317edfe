"""Troubles of a real worker that no signal from outside makes: each is a pause, and every text is as without it."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from mlx_serving.core.generation import Delta, GenerationRequest, TokenPrompt
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.telemetry.events import ErrorOccurred, StreamRecovered

from ..event_log import EventLog
from .harness import complete, request, running, send, serving, worker_pid
from .troubled_worker import Trouble

TOKENS = 200
CROWD = 6
MARKS = {"pause_at_tokens": 40, "resume_at_tokens": 10}
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
    """An engine with a worker that obeys, and what its crowd gets when it is left in peace."""

    core: EngineCore
    trouble: Trouble
    expected: list[str]

    async def play(self, disturb: Callable[[], None], *, recovered: int, restarts: int) -> None:
        """Complete the crowd; `disturb` is called when each of it has delivered something. Until then nobody reads on,
        so that nobody's answer can be over."""
        log, before = EventLog(self.core.events), await self.restarts()
        begun, disturbed = 0, asyncio.Event()

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
                            disturbed.set()
                        await disturbed.wait()
            return deltas

        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(one(each) for each in crowd()))
        assert [text_of(deltas) for deltas in answers] == self.expected
        assert log.of(ErrorOccurred) == []
        ours = {one.request_id for one in crowd()}
        assert len(ours & {event.stream_id for event in log.of(StreamRecovered)}) == recovered
        assert await self.restarts() == before + restarts

    async def restarts(self) -> int:
        return (await self.core.health()).worker.restarts


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> AsyncGenerator[Scene]:
    trouble = Trouble(tmp_path_factory.mktemp("chaos") / "trouble")
    worker = {"python": trouble.as_python(), "max_restarts": 100, **HEARTBEATS}
    async with running(serving(tiny_model, worker=worker, scheduler=MARKS)) as core:
        expected = [text_of(each) for each in await asyncio.gather(*(complete(core, one) for one in crowd()))]
        yield Scene(core, trouble, expected)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("truncate", b""),
        ("corrupt", b""),
        ("garbage", b"nonsense\n"),
        ("garbage", b"\xc1\x00\x00\x00\x04\xff\xff\xff\xff"),
        ("garbage", bytes(range(128, 192)) * 100),
    ],
    ids=["truncated frame", "bytes missing", "nonsense", "nonsense in a frame", "no line"],
)
async def test_what_breaks_the_pipe_is_a_pause(stage: Scene, name: str, content: bytes) -> None:
    await stage.play(lambda: stage.trouble.order(name, content), recovered=CROWD, restarts=1)


async def test_a_worker_that_does_not_read_for_a_while_is_waited_for(stage: Scene) -> None:
    stage.trouble.order("deaf", "0.5")
    await stage.play(lambda: None, recovered=0, restarts=0)
    assert not stage.trouble.is_ordered("deaf")


async def test_a_slow_disk_is_no_hang_and_a_death_in_the_load_is_a_longer_pause(stage: Scene) -> None:
    pid = await worker_pid(stage.core)
    stage.trouble.order("slow-disk", "0.02")
    stage.trouble.order("dying-load")
    await stage.play(lambda: send(pid, signal.SIGKILL), recovered=CROWD, restarts=2)
    assert not stage.trouble.is_ordered("dying-load")
    stage.trouble.cancel("slow-disk")


async def test_a_worker_that_gets_no_memory_is_followed_by_a_more_modest_one(stage: Scene) -> None:
    assert (await stage.core.health()).worker.kv_share == 1
    await stage.play(lambda: stage.trouble.order("no-memory"), recovered=CROWD, restarts=1)
    assert (await stage.core.health()).worker.kv_share == 0.75


async def test_a_worker_without_address_space_is_replaced(stage: Scene) -> None:
    pid, before = await worker_pid(stage.core), await stage.restarts()
    resource.prlimit(pid, resource.RLIMIT_AS, (1, 1))
    # What it has may last it for short prompts, but a thread or an array more is too much.
    long = replace(request("long"), prompt=TokenPrompt((1,) * 300))
    assert len(await complete(stage.core, long)) > 1
    assert await stage.restarts() <= before + 1


async def test_readers_that_stall_and_vanish_meanwhile_disturb_nobody(stage: Scene) -> None:
    async def vanish(number: int) -> None:
        async with stage.core.generate(request(f"vanishes{number}", max_tokens=400)) as deltas:
            async for _ in deltas:
                break

    async def stall(resumed: asyncio.Event) -> list[Delta]:
        async with stage.core.generate(replace(crowd()[0], request_id="stalls")) as deltas:
            first = await anext(deltas)
            await resumed.wait()
            return [first, *[delta async for delta in deltas]]

    resumed = asyncio.Event()
    stalled = asyncio.create_task(stall(resumed))
    vanishing = [asyncio.create_task(vanish(number)) for number in range(4)]
    await stage.play(lambda: stage.trouble.order("truncate"), recovered=CROWD, restarts=1)
    await asyncio.gather(*vanishing)
    resumed.set()
    assert text_of(await stalled) == stage.expected[0]
    assert (await stage.core.health()).active_streams == 0
