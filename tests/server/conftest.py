from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, cast

import httpx2
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from mlx_serving.server.app import ServerApp, create_app
from mlx_serving.server.http.listening import ListenAddress
from mlx_serving.server.ports import ServingEngine
from mlx_serving.server.run import HttpServer
from mlx_serving.server.settings import ServerSettings
from mlx_serving.telemetry.logger import LIBRARY

from .scripted_engine import ScriptedEngine

MAX_BODY_BYTES = 200_000

LogLines: TypeAlias = list[MutableMapping[str, Any]]


@pytest.fixture(autouse=True)
def log_lines() -> Generator[LogLines]:
    """What was logged."""
    lines: LogLines = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(cast("MutableMapping[str, Any]", record.msg))

    logger, collector = logging.getLogger(LIBRARY), Collector()
    before = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.removeHandler(collector)
    logger.setLevel(before)


@asynccontextmanager
async def running(app: ServerApp) -> AsyncGenerator[ListenAddress]:
    """A real server on a free port."""
    started: asyncio.Future[Sequence[ListenAddress]] = asyncio.get_running_loop().create_future()
    server = HttpServer(app, on_started=started.set_result)
    task = asyncio.create_task(server.run("127.0.0.1", 0))
    try:
        await asyncio.wait((started, task), timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task  # it says why
        yield (await asyncio.wait_for(started, 0))[0]
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def address(session_engine: ScriptedEngine) -> AsyncGenerator[ListenAddress]:
    settings = ServerSettings(max_body_bytes=MAX_BODY_BYTES, body_timeout_s=20, access_log=False)
    async with running(create_app(session_engine, settings)) as listening:
        yield listening


@pytest.fixture
def engine(session_engine: ScriptedEngine) -> ScriptedEngine:
    """The engine behind `address`, as new."""
    session_engine.reset()
    return session_engine


@pytest_asyncio.fixture(loop_scope="session")
async def client(address: ListenAddress, engine: ScriptedEngine) -> AsyncGenerator[AsyncOpenAI]:
    """OpenAI's own client; `engine` is behind it."""
    async with AsyncOpenAI(base_url=f"{address.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def http(address: ListenAddress, engine: ScriptedEngine) -> AsyncGenerator[httpx2.AsyncClient]:
    """Plain HTTP to the real server; `engine` is behind it."""
    async with httpx2.AsyncClient(base_url=address.url) as opened:
        yield opened


@asynccontextmanager
async def in_process(engine: ServingEngine, settings: ServerSettings) -> AsyncGenerator[httpx2.AsyncClient]:
    """Plain HTTP to an application of its own, without a socket."""
    transport = httpx2.ASGITransport(app=create_app(engine, settings))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def admin(engine: ScriptedEngine) -> AsyncGenerator[httpx2.AsyncClient]:
    async with in_process(engine, ServerSettings(admin_key="key", access_log=False)) as http:
        http.headers["authorization"] = "Bearer key"
        yield http
