"""The `websockets` client against a real server with a scripted engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from mlx_serving.core.generation import ChatPrompt
from mlx_serving.errors import Overloaded
from mlx_serving.server.app import create_app
from mlx_serving.server.http.listening import ListenAddress
from mlx_serving.server.openai.documents import ChatCompletion, ChatCompletionChunk, ErrorDocument
from mlx_serving.server.run import HttpServer
from mlx_serving.server.settings import ServerSettings
from mlx_serving.server.websocket.routes import MAX_REQUESTS

from ..conftest import MAX_BODY_BYTES, LogLines, running
from ..scripted_engine import Script, ScriptedEngine

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


class Chats:
    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def ask(self, request_id: str, **fields: object) -> None:
        await self.send(type="request", id=request_id, body=BODY | fields)

    async def send(self, **message: object) -> None:
        await self.connection.send(json.dumps(message))

    async def next(self) -> dict[str, Any]:
        return json.loads(await asyncio.wait_for(self.connection.recv(), 10))

    async def until_end(self, request_id: str) -> list[dict[str, Any]]:
        """Every message, up to the one that ends this request."""
        messages = [await self.next()]
        while messages[-1]["id"] != request_id or messages[-1]["type"] == "chunk":
            messages.append(await self.next())
        return messages


@asynccontextmanager
async def chatting(address: ListenAddress, **options: Any) -> AsyncGenerator[Chats]:
    async with connect(f"{address.url.replace('http', 'ws')}/v1/ws", **options) as connection:
        yield Chats(connection)


def _text(messages: list[dict[str, Any]], request_id: str) -> str:
    chunks = [message["data"] for message in messages if message["type"] == "chunk" and message["id"] == request_id]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


async def test_an_answer_comes_whole_or_in_chunks(address: ListenAddress, engine: ScriptedEngine) -> None:
    async with chatting(address) as chats:
        await chats.ask("whole", model="tiny")
        [whole] = await chats.until_end("whole")
        await chats.ask("streamed", model="tiny", stream=True, stream_options={"include_usage": True})
        streamed = await chats.until_end("streamed")
    assert whole["type"] == "completion"
    ChatCompletion.model_validate(whole["data"], strict=True)
    assert _text(streamed, "streamed") == whole["data"]["choices"][0]["message"]["content"] == "Hello world"
    assert streamed[-1] == {"type": "done", "id": "streamed"}
    for message in streamed[:-1]:
        ChatCompletionChunk.model_validate(message["data"], strict=True)
    assert streamed[-2]["data"]["usage"]["total_tokens"] > 0


async def test_several_requests_at_a_time_do_not_wait_for_each_other(
    address: ListenAddress, engine: ScriptedEngine
) -> None:
    engine.scripts = [Script(hang=True)]
    async with chatting(address) as chats:
        await chats.ask("slow", stream=True)
        hanging = await engine.next_run()
        await hanging.delivered.wait()
        await chats.ask("quick", stream=True)
        messages = await chats.until_end("quick")
        assert _text(messages, "quick") == "Hello world"
        assert messages[-1] == {"type": "done", "id": "quick"}
        assert not hanging.left.is_set()


async def test_cancelling_ends_one_request_and_frees_its_id(address: ListenAddress, engine: ScriptedEngine) -> None:
    engine.scripts = [Script(hang=True), Script(hang=True)]
    async with chatting(address) as chats:
        await chats.ask("a", stream=True)
        first = await engine.next_run()
        await chats.ask("b", stream=True)
        second = await engine.next_run()
        await first.delivered.wait()
        await chats.send(type="cancel", id="a")
        assert (await chats.until_end("a"))[-1] == {"type": "cancelled", "id": "a"}
        assert first.aborted
        assert not second.left.is_set()
        await chats.ask("a")
        assert (await chats.until_end("a"))[-1]["type"] == "completion"


async def test_cancelling_what_is_not_there_does_nothing(address: ListenAddress, engine: ScriptedEngine) -> None:
    async with chatting(address) as chats:
        await chats.send(type="cancel", id="nothing")
        await chats.ask("a")
        assert (await chats.next())["type"] == "completion"


async def test_leaving_ends_everything(address: ListenAddress, engine: ScriptedEngine) -> None:
    engine.script = Script(hang=True)
    async with chatting(address) as chats:
        await chats.ask("a", stream=True)
        await chats.ask("b")
        runs = [await engine.next_run(), await engine.next_run()]
    for run in runs:
        await asyncio.wait_for(run.left.wait(), 10)
        assert run.aborted


@pytest.mark.parametrize(
    ("message", "addressee", "named"),
    [
        ("{", None, "not valid JSON"),
        ("[]", None, "JSON object"),
        ('{"type": "request"}', None, "id must be"),
        ('{"type": "request", "id": 5}', None, "id must be"),
        ('{"type": "shout", "id": "a"}', "a", "request or cancel"),
        ('{"type": "request", "id": "a"}', "a", "body must be"),
        ('{"type": "request", "id": "a", "body": {}, "colour": 1}', "a", "colour"),
        ('{"type": "request", "id": "a", "body": {}}', "a", "messages is required"),
        ('{"type": "request", "id": "a", "body": {"messages": [], "model": "x"}}', "a", "must not be empty"),
    ],
)
async def test_what_is_wrong_is_told_and_the_connection_goes_on(
    address: ListenAddress, engine: ScriptedEngine, message: str, addressee: str | None, named: str
) -> None:
    async with chatting(address) as chats:
        await chats.connection.send(message)
        told = await chats.next()
        await chats.ask("next")
        assert (await chats.next())["type"] == "completion"
    assert (told["type"], told["id"]) == ("error", addressee)
    assert named in told["error"]["message"]
    ErrorDocument.model_validate({"error": told["error"]})


async def test_a_message_of_bytes_is_read_as_text(address: ListenAddress, engine: ScriptedEngine) -> None:
    async with chatting(address) as chats:
        await chats.connection.send(json.dumps({"type": "request", "id": "a", "body": BODY}).encode())
        assert (await chats.next())["type"] == "completion"


async def test_an_id_in_use_is_refused_to_nobody_in_particular(address: ListenAddress, engine: ScriptedEngine) -> None:
    engine.scripts = [Script(hang=True)]
    async with chatting(address) as chats:
        await chats.ask("a")
        await engine.next_run()
        await chats.ask("a")
        told = await chats.next()
    assert (told["type"], told["id"]) == ("error", None)
    assert "'a'" in told["error"]["message"]


async def test_requests_at_a_time_are_bounded(address: ListenAddress, engine: ScriptedEngine) -> None:
    engine.script = Script(hang=True)
    async with chatting(address) as chats:
        for number in range(MAX_REQUESTS + 1):
            await chats.ask(f"r{number}")
        told = await chats.next()
    assert told["id"] == f"r{MAX_REQUESTS}"
    assert told["error"]["code"] == "overloaded"


async def test_errors_are_those_of_the_same_request_over_http(address: ListenAddress, engine: ScriptedEngine) -> None:
    engine.scripts = [Script(refusal=Overloaded("busy", retry_after=2)), Script(failure=ValueError("secret"))]
    async with chatting(address) as chats:
        await chats.ask("a", stream=True)
        refused = (await chats.until_end("a"))[-1]
        await chats.ask("b", stream=True)
        failed = (await chats.until_end("b"))[-1]
    assert (refused["error"]["code"], refused["error"]["details"]["retry_after"]) == ("overloaded", 2)
    assert failed["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(failed)


async def test_a_message_that_is_too_large_closes_the_connection(
    address: ListenAddress, engine: ScriptedEngine
) -> None:
    async with chatting(address) as chats:
        await chats.connection.send("x" * (MAX_BODY_BYTES + 1))
        with pytest.raises(ConnectionClosed) as caught:
            await chats.next()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009


async def test_pings_are_answered(address: ListenAddress, engine: ScriptedEngine) -> None:
    async with chatting(address) as chats:
        await asyncio.wait_for(await chats.connection.ping(), 10)


async def test_a_client_that_does_not_read_holds_up_its_own_answers_only(
    address: ListenAddress, engine: ScriptedEngine
) -> None:
    pieces = ("x" * 10_000,) * 2_000
    engine.scripts = [Script(pieces=pieces)]
    async with chatting(address, max_queue=1) as deaf, chatting(address) as chats:
        await deaf.ask("long", stream=True)
        held_up = await engine.next_run()
        taken = -1
        while taken != held_up.taken:
            taken = held_up.taken
            await chats.ask("short")
            assert (await chats.until_end("short"))[-1]["type"] == "completion"
        assert taken < len(pieces)
        assert _text(await deaf.until_end("long"), "long") == "".join(pieces)


async def test_a_key_is_asked_for(engine: ScriptedEngine) -> None:
    app = create_app(engine, ServerSettings(api_key="sesame", access_log=False))
    async with running(app) as address:
        with pytest.raises(InvalidStatus) as caught:
            async with chatting(address):
                pass
        assert caught.value.response.status_code == 401
        for headers in ({"authorization": "Bearer sesame"}, {"x-api-key": "sesame"}):
            async with chatting(address, additional_headers=headers) as chats:
                await chats.ask("a")
                assert (await chats.next())["type"] == "completion"


async def test_pages_of_other_sites_may_not_connect(address: ListenAddress, engine: ScriptedEngine) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with chatting(address, origin="http://elsewhere.example"):
            pass
    assert caught.value.response.status_code == 403
    async with chatting(address, origin=address.url) as chats:
        await chats.ask("a")
        assert (await chats.next())["type"] == "completion"


async def test_each_request_has_a_line_in_the_log(engine: ScriptedEngine, log_lines: LogLines) -> None:
    async with running(create_app(engine, ServerSettings())) as address, chatting(address) as chats:
        await chats.ask("a", user="bob")
        await chats.next()
        await chats.ask("b", colour=1)
        await chats.next()
    lines = [line for line in log_lines if line["event"] == "request"]
    assert [(line["method"], line["path"], line.get("user"), line.get("error")) for line in lines] == [
        ("WEBSOCKET", "/v1/ws", "bob", None),
        ("WEBSOCKET", "/v1/ws", None, "unknown_parameter"),
    ]


async def test_a_server_that_drains_finishes_what_was_asked_and_takes_no_more(engine: ScriptedEngine) -> None:
    engine.scripts = [Script(hang=True)]
    started: asyncio.Future[ListenAddress] = asyncio.get_running_loop().create_future()
    app = create_app(engine, ServerSettings(access_log=False, drain_timeout_s=60))
    server = HttpServer(app, on_started=lambda addresses: started.set_result(addresses[0]))
    serving = asyncio.create_task(server.run("127.0.0.1", 0))
    async with chatting(await asyncio.wait_for(started, 10)) as chats:
        await chats.ask("a", stream=True)
        run = await engine.next_run()
        await run.delivered.wait()
        server.stop(15)
        await chats.ask("b")
        refused = (await chats.until_end("b"))[-1]
        assert refused["error"]["code"] == "shutting_down"
        assert not run.left.is_set()
        await chats.send(type="cancel", id="a")
        assert (await chats.until_end("a"))[-1]["type"] == "cancelled"
        with pytest.raises(ConnectionClosed):
            await chats.next()
    assert await asyncio.wait_for(serving, 10) == 0


async def test_the_request_is_the_chats(address: ListenAddress, engine: ScriptedEngine) -> None:
    async with chatting(address) as chats:
        await chats.ask("a", temperature=0.5, max_tokens=3)
        await chats.next()
    assert engine.last_request.prompt == ChatPrompt(({"role": "user", "content": "Hi"},))
    assert (engine.last_request.sampling.temperature, engine.last_request.sampling.max_tokens) == (0.5, 3)
