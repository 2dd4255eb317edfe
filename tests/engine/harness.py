"""Engines and supervisors for tests: real processes, short times."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from mlx_serving.assembly import build
from mlx_serving.config.schema import Config
from mlx_serving.core.generation import Delta, GenerationRequest, SamplingParams, TextPrompt
from mlx_serving.core.retry import BackoffPolicy
from mlx_serving.core.worker_lifecycle import WorkerPolicy
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_process import WorkerCommand
from mlx_serving.telemetry.events import EventBus
from mlx_serving.wire.settings import WorkerSettings

from ..event_log import LIMIT_S
from ..tiny_models import VOCABULARY

MODEL = "tiny"
QUICK_BACKOFF = BackoffPolicy(initial_delay_s=0.01, max_delay_s=0.02)
WATCHFUL = {"heartbeat_interval_s": 0.2, "heartbeat_timeout_s": 1.5}
"""A worker that is stopped is noticed soon, one on a busy machine is not accused."""


def serving(model: Path, **sections: Any) -> Config:
    """The configuration of an engine that serves `model` as `tiny`, loaded when it is needed. What the worker does is
    what a test asks for: it warms nothing up."""
    worker = {"backoff": {"initial_delay_s": 0.01, "max_delay_s": 0.02}, **sections.pop("worker", {})}
    models = {"served": [{"model": str(model), "name": MODEL, "preload": False, "warm_up": False}]}
    return Config.model_validate({"models": models, "worker": worker, **sections})


@asynccontextmanager
async def running(config: Config) -> AsyncGenerator[EngineCore]:
    core = build(config)
    try:
        yield core
    finally:
        async with asyncio.timeout(LIMIT_S):
            await core.stop()


@asynccontextmanager
async def supervised(python: str | None = None, **policy: Any) -> AsyncGenerator[tuple[Supervisor, EventBus]]:
    """A supervisor without an engine; `python` stands in for the worker's interpreter."""
    bus = EventBus()
    policy.setdefault("backoff", QUICK_BACKOFF)
    chosen = WorkerPolicy(**policy)
    supervisor = Supervisor(WorkerCommand(WorkerSettings(), python=python, blas="none"), chosen, bus)
    try:
        yield supervisor, bus
    finally:
        async with asyncio.timeout(LIMIT_S):
            await supervisor.stop()


def request(request_id: str = "r", *, max_tokens: int = 8, model: str = MODEL, **fields: Any) -> GenerationRequest:
    """A greedy request that no end-of-text token cuts short."""
    special = dict.fromkeys(range(256, VOCABULARY), -100.0)
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, logit_bias=special)
    return GenerationRequest(request_id, model, TextPrompt("Hello"), sampling, **fields)


def endless(request_id: str = "r", **fields: Any) -> GenerationRequest:
    """A request that takes much longer than any test needs it to."""
    return request(request_id, max_tokens=4000, **fields)


async def collect(deltas: AsyncIterator[Delta]) -> list[Delta]:
    return [delta async for delta in deltas]


async def complete(core: EngineCore, asked: GenerationRequest) -> list[Delta]:
    async with asyncio.timeout(LIMIT_S), core.generate(asked) as deltas:
        return await collect(deltas)


async def worker_pid(core: EngineCore) -> int:
    return (await core.runtime_info()).pid


def send(pid: int | None, number: signal.Signals) -> None:
    assert pid is not None
    os.kill(pid, number)


async def gone(pid: int) -> None:
    """Until no process of that id is left, not even a zombie."""

    def wait() -> None:
        try:
            psutil.Process(pid).wait(LIMIT_S)
        except psutil.NoSuchProcess:
            return

    await asyncio.to_thread(wait)
    assert not psutil.pid_exists(pid)


def zombies() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
