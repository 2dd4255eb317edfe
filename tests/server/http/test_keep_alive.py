"""Comments while a streamed answer is silent: as long as work gets on, and no longer."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from starlette.types import Message

from mlx_serving.core.generation import Delta, FinishReason, GenerationRequest, GenerationStats
from mlx_serving.errors import EngineError, Overloaded, WorkerHung
from mlx_serving.server.app import create_app
from mlx_serving.server.http import sse
from mlx_serving.server.http.keep_alive import EventStream, KeepAlive
from mlx_serving.server.settings import ServerSettings

from ...engine import harness
from ..conftest import running
from ..raw_http import connect, post
from ..scripted_engine import ScriptedEngine

SOON_S = 0.001
BODY = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
STREAMED = post("/v1/chat/completions", json.dumps(BODY).encode())
SETTINGS = ServerSettings(keepalive_s=SOON_S, access_log=False)


class Work:
    """A count of finished work that rises when it is looked at, while `getting_on`; and waits for looks."""

    def __init__(self, count: Callable[[], int] | None = None) -> None:
        self.getting_on = True
        self._count = count or self._made_up
        self._done = 0
        self._looks = 0
        self._looked = asyncio.Event()

    def progress(self) -> int:
        self._looks += 1
        self._looked.set()
        return self._count()

    async def looked_at(self, times: int) -> None:
        """Until it was looked at so many times more."""
        wanted = self._looks + times
        async with asyncio.timeout(30):
            while self._looks < wanted:
                self._looked.clear()
                await self._looked.wait()

    def _made_up(self) -> int:
        self._done += self.getting_on
        return self._done


class Client:
    """What an ASGI application has sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.gone = False
        self._came = asyncio.Event()

    async def send(self, message: Message) -> None:
        if self.gone:
            raise OSError("the client has left")
        self.messages.append(message)
        self._came.set()

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message["type"] == "http.response.body"]

    async def got(self, count: int) -> None:
        """Until so many messages have come."""
        async with asyncio.timeout(30):
            while len(self.messages) < count:
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def stream_of(work: Work, interval_s: float | None = SOON_S) -> AsyncGenerator[tuple[EventStream, Client]]:
    client = Client()
    async with EventStream(client.send, KeepAlive(interval_s, work.progress)) as stream:
        yield stream, client


async def test_a_first_comment_opens_the_stream_and_others_follow() -> None:
    async with stream_of(Work()) as (stream, client):
        assert not stream.begun
        await client.got(4)
        assert stream.begun
        assert [message["type"] for message in client.messages[:2]] == ["http.response.start", "http.response.body"]
        assert client.messages[0]["status"] == 200
        assert set(client.bodies) == {sse.COMMENT}
        assert all(message["more_body"] for message in client.messages[1:])


async def test_without_progress_nothing_is_sent() -> None:
    work = Work()
    work.getting_on = False
    async with stream_of(work) as (stream, client):
        await work.looked_at(5)
        assert client.messages == []
        assert not stream.begun


async def test_comments_stop_with_the_progress_and_come_back_with_it() -> None:
    work = Work()
    async with stream_of(work) as (_, client):
        await client.got(3)
        work.getting_on = False
        await work.looked_at(2)  # the last progress may still be told
        before = len(client.messages)
        await work.looked_at(5)
        assert len(client.messages) == before
        work.getting_on = True
        await client.got(before + 2)


async def test_the_head_is_sent_once() -> None:
    async with stream_of(Work()) as (stream, client):
        await client.got(2)
        await stream.open()
        await stream.open()
        await stream.write(b"data: 1\n\n")
        assert [message["type"] for message in client.messages].count("http.response.start") == 1
    async with stream_of(Work(), None) as (stream, client):
        await stream.open()
        assert stream.begun
        assert [message["type"] for message in client.messages] == ["http.response.start"]


async def test_a_stream_that_is_not_silent_gets_no_comment() -> None:
    work = Work()
    async with stream_of(work, 0.05) as (stream, client):
        await stream.open()
        for _ in range(4):
            looked = asyncio.create_task(work.looked_at(1))
            while not looked.done():
                await stream.write(b"data: 1\n\n")
                await asyncio.sleep(0)
        assert sse.COMMENT not in client.bodies


async def test_nothing_comes_after_the_end() -> None:
    work = Work()
    async with stream_of(work) as (stream, client):
        await client.got(2)
        await stream.close(b"data: [DONE]\n\n")
        count = len(client.messages)
        for _ in range(20):
            await asyncio.sleep(SOON_S)
        assert len(client.messages) == count
        assert client.messages[-1] == {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False}


async def test_leaving_the_block_ends_the_comments() -> None:
    async with stream_of(Work()) as (_, client):
        await client.got(2)
    count = len(client.messages)
    for _ in range(20):
        await asyncio.sleep(SOON_S)
    assert len(client.messages) == count


async def test_without_an_interval_there_are_none() -> None:
    work = Work()
    async with stream_of(work, None) as (_, client):
        for _ in range(20):
            await asyncio.sleep(SOON_S)
    assert client.messages == []


async def test_a_client_that_has_left_ends_the_comments_quietly() -> None:
    work = Work()
    async with stream_of(work) as (_, client):
        await client.got(2)
        client.gone = True
        for _ in range(20):
            await asyncio.sleep(SOON_S)
        assert len(client.messages) >= 2


# -- over HTTP


@dataclass
class Gates:
    """What holds a request: before it is accepted, before its first token, before its end."""

    accepted: asyncio.Event
    token: asyncio.Event
    end: asyncio.Event


class GatedEngine(ScriptedEngine):
    """Waits at its gates, and fails at the one that is open if there is a `failure`."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.gates = Gates(asyncio.Event(), asyncio.Event(), asyncio.Event())
        self.failure: EngineError | None = None

    def progress(self) -> int:
        return self.work.progress()

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        await self._pass(self.gates.accepted)
        yield self._gated()

    async def _gated(self) -> AsyncIterator[Delta]:
        await self._pass(self.gates.token)
        yield Delta("Hello", (1,))
        await self._pass(self.gates.end)
        yield Delta("", (), FinishReason.STOP, GenerationStats(1, 1, 0.1, 1.0, 0.1))

    async def _pass(self, gate: asyncio.Event) -> None:
        await gate.wait()
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("held", ["accepted", "token", "end"])
async def test_whoever_waits_is_told_that_work_gets_on_and_then_gets_the_whole_answer(held: str) -> None:
    engine = GatedEngine()
    gates = {name: getattr(engine.gates, name) for name in ("accepted", "token", "end")}
    for name, gate in gates.items():
        if name != held:
            gate.set()
    async with running(create_app(engine, SETTINGS)) as address, connect(address) as connection:
        await connection.send(STREAMED)
        head = await connection.read_until(sse.COMMENT)
        await connection.read_until(sse.COMMENT)
        assert head.startswith(b"HTTP/1.1 200 ")
        gates[held].set()
        rest = (await connection.read_all()).decode()
    assert rest.count("[DONE]") == 1


async def test_what_fails_after_the_first_comment_is_the_last_event() -> None:
    engine = GatedEngine()
    engine.failure = WorkerHung("It hangs")
    async with running(create_app(engine, SETTINGS)) as address, connect(address) as connection:
        await connection.send(STREAMED)
        await connection.read_until(sse.COMMENT)
        engine.gates.accepted.set()
        rest = (await connection.read_all()).decode()
    assert '"code":"worker_hung"' in rest
    assert "[DONE]" not in rest


@pytest.mark.parametrize("keepalive_s", [10.0, None])
async def test_what_fails_before_the_first_comment_is_an_http_error(keepalive_s: float | None) -> None:
    engine = GatedEngine()
    engine.failure = Overloaded("busy", retry_after=2)
    engine.gates.accepted.set()
    settings = ServerSettings(keepalive_s=keepalive_s, access_log=False)
    async with running(create_app(engine, settings)) as address, connect(address) as connection:
        await connection.send(STREAMED)
        answer = await connection.read_all()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 2" in answer


async def test_without_progress_a_late_failure_is_still_an_http_error() -> None:
    engine = GatedEngine()
    engine.work.getting_on = False
    engine.failure = WorkerHung("It hangs")
    async with running(create_app(engine, SETTINGS)) as address, connect(address) as connection:
        await connection.send(STREAMED)
        await engine.work.looked_at(5)
        engine.gates.accepted.set()
        answer = await connection.read_all()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"worker_hung"' in answer


async def test_the_official_client_does_not_see_the_comments() -> None:
    engine = GatedEngine()
    engine.gates.accepted.set()
    async with (
        running(create_app(engine, SETTINGS)) as address,
        AsyncOpenAI(base_url=f"{address.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        await engine.work.looked_at(5)
        engine.gates.token.set()
        engine.gates.end.set()
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "Hello"


async def test_a_client_that_leaves_while_it_waits_frees_what_it_held() -> None:
    engine = GatedEngine()
    app = create_app(engine, SETTINGS)
    async with running(app) as address:
        async with connect(address) as connection:
            await connection.send(STREAMED)
            await connection.read_until(sse.COMMENT)
            await connection.close()
        await asyncio.wait_for(app.in_flight.wait_idle(), 10)


async def test_a_worker_that_is_stopped_gets_its_clients_no_comments(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = harness.serving(
        tiny_model,
        worker={"heartbeat_interval_s": 0.02, "heartbeat_timeout_s": 3600},
        scheduler={"max_num_seqs": 1},
    )
    async with harness.running(config) as core, core.generate(harness.endless("takes the only slot")) as deltas:
        await anext(deltas)
        reading = asyncio.create_task(harness.collect(deltas))
        work = Work(core.progress)
        monkeypatch.setattr(core, "progress", work.progress)
        settings = ServerSettings(keepalive_s=0.05, access_log=False)
        async with running(create_app(core, settings)) as address, connect(address) as connection:
            await connection.send(STREAMED)
            for _ in range(3):
                await connection.read_until(sse.COMMENT)
            pid = await harness.worker_pid(core)
            harness.send(pid, signal.SIGSTOP)
            await work.looked_at(3)  # what it had told before is known by then
            await _arrived(connection.reader)
            await work.looked_at(5)
            assert await _arrived(connection.reader) == b""
            harness.send(pid, signal.SIGCONT)
            await connection.read_until(sse.COMMENT)
        reading.cancel()
        await asyncio.wait([reading])


async def _arrived(reader: asyncio.StreamReader) -> bytes:
    """What has come and was not read yet."""
    try:
        async with asyncio.timeout(0):
            return await reader.read(65536)
    except TimeoutError:
        return b""
