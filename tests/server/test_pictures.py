"""Pictures through every API of a real server, up to the Backend below the layer that reads them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anthropic
import httpx2
import openai
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from websockets.asyncio.client import connect

from mlx_serving.core.generation import ChatPrompt, Delta, GenerationRequest
from mlx_serving.core.images.addresses import FetchPolicy
from mlx_serving.core.images.image import Image
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.engine.images import ImagesBackend, PromptImages
from mlx_serving.errors import InvalidEnvelope
from mlx_serving.images.reader import ImageReader
from mlx_serving.server.app import create_app
from mlx_serving.server.http.body import parse_json_object
from mlx_serving.server.http.listening import ListenAddress
from mlx_serving.server.resume.handover import Handover
from mlx_serving.server.settings import ServerSettings
from mlx_serving.wire.methods import TokenizeResult

from ..pictures import data_uri, file_of, picture, png, png_of_chunks
from ..web_pages import Web, answer, redirect, web
from .conftest import LogLines, running
from .scripted_engine import ScriptedEngine

ONE, OTHER = png(), png(shade=7)
POLICY = ImagePolicy(max_images=3, max_pixels=100_000)


class SeeingEngine(ScriptedEngine):
    """A scripted engine below the layer that reads pictures; what it was asked for is in `runs` and `counted`."""

    def __init__(self) -> None:
        super().__init__()
        self.takes_images: bool | None = True
        self.counted: list[ChatPrompt] = []
        self.images = PromptImages(ImageReader(POLICY), lambda _: self.takes_images, 1_000_000)
        self._layer = ImagesBackend(_Below(self), self.images)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        async with self._layer.generate(request) as deltas:
            yield deltas

    async def tokenize_chat(self, name: str, prompt: ChatPrompt) -> TokenizeResult:
        self.counted.append(await self.images.fill(name, prompt))
        return TokenizeResult([1, 2, 3], ["a", "b", "c"])

    @property
    def last_prompt(self) -> ChatPrompt:
        prompt = self.last_request.prompt
        assert isinstance(prompt, ChatPrompt)
        assert prompt.sources == ()
        return prompt


class _Below:
    def __init__(self, engine: SeeingEngine) -> None:
        self._engine = engine

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        return ScriptedEngine.generate(self._engine, request)


@pytest_asyncio.fixture(loop_scope="session")
async def seeing() -> AsyncGenerator[SeeingEngine]:
    engine = SeeingEngine()
    yield engine
    engine.images.close()


@pytest_asyncio.fixture(loop_scope="session")
async def listening(seeing: SeeingEngine) -> AsyncGenerator[ListenAddress]:
    async with running(create_app(seeing, ServerSettings())) as address:
        yield address


@pytest_asyncio.fixture(loop_scope="session")
async def seen(listening: ListenAddress) -> AsyncGenerator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{listening.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def claude(listening: ListenAddress) -> AsyncGenerator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=listening.url, api_key="unused", max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def plain(listening: ListenAddress) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=listening.url) as opened:
        yield opened


def part(data: bytes = ONE, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(data), **fields}}


def block(data: bytes = ONE, media_type: str = "image/png") -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def files(prompt: ChatPrompt) -> list[bytes]:
    return [image.data for image in prompt.images]


# -- the APIs


async def test_chats_have_pictures_in_any_turn(seen: AsyncOpenAI, seeing: SeeingEngine) -> None:
    messages: Any = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [text("This"), part(), text("or that"), part(OTHER, detail="low")]},
        {"role": "assistant", "content": "That."},
        {"role": "user", "content": [part(detail="high")]},
        {"role": "user", "content": [text("one"), text("two")]},
    ]
    answer = await seen.chat.completions.create(model="tiny", messages=messages)
    assert answer.choices[0].message.content == "Hello world"
    assert [message["content"] for message in seeing.last_prompt.messages] == [
        "Look.",
        [text("This"), {"type": "image"}, text("or that"), {"type": "image"}],
        "That.",
        [{"type": "image"}],
        "one\ntwo",
    ]
    assert files(seeing.last_prompt) == [ONE, OTHER, ONE]
    assert [image.detail for image in seeing.last_prompt.images] == ["auto", "low", "high"]


async def test_chats_with_pictures_are_streamed_and_have_several_answers(
    seen: AsyncOpenAI, seeing: SeeingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    real = ImageReader.read

    async def noting(self: ImageReader, sources: Any) -> tuple[Image, ...]:
        reads.append(len(sources))
        return await real(self, sources)

    monkeypatch.setattr(ImageReader, "read", noting)
    messages: Any = [{"role": "user", "content": [part(), text("Well?")]}]
    stream = await seen.chat.completions.create(model="tiny", messages=messages, stream=True, n=3)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(pieces).count("world") == 3
    assert [files(cast("ChatPrompt", run.request.prompt)) for run in seeing.runs] == [[ONE]] * 3
    assert reads == [1]


async def test_a_url_may_stand_without_an_object(plain: httpx2.AsyncClient, seeing: SeeingEngine) -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": data_uri(ONE)}]}
    response = await plain.post("/v1/chat/completions", json={"messages": [message]})
    assert response.status_code == 200
    assert files(seeing.last_prompt) == [ONE]


async def test_responses_have_pictures_and_go_on_from_them(seen: AsyncOpenAI, seeing: SeeingEngine) -> None:
    content: Any = [
        {"type": "input_text", "text": "This?"},
        {"type": "input_image", "image_url": data_uri(ONE), "detail": "low"},
    ]
    first = await seen.responses.create(
        model="tiny", instructions="Look.", input=[{"role": "user", "content": content}]
    )
    assert files(seeing.last_prompt) == [ONE]
    called: Any = [
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{**content[1], "image_url": data_uri(OTHER)}]},
    ]
    await seen.responses.create(model="tiny", previous_response_id=first.id, input=called)
    assert files(seeing.last_prompt) == [ONE, OTHER]
    assert seeing.last_prompt.messages[-1]["content"] == [{"type": "image"}]
    items = await seen.responses.input_items.list(first.id)
    assert cast("Any", items.data[0]).content[1].image_url == data_uri(ONE)


async def test_instructions_stand_before_a_system_message_with_a_picture(
    seen: AsyncOpenAI, seeing: SeeingEngine
) -> None:
    item: Any = {"role": "system", "content": [{"type": "input_image", "image_url": data_uri(ONE)}]}
    await seen.responses.create(model="tiny", instructions="Look.", input=[item, {"role": "user", "content": "So?"}])
    assert seeing.last_prompt.messages[0] == {"role": "system", "content": [text("Look."), {"type": "image"}]}


async def test_messages_have_pictures_also_in_what_tools_say(claude: AsyncAnthropic, seeing: SeeingEngine) -> None:
    messages: Any = [
        {"role": "user", "content": [block(), text("Look there")]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "is_error": True,
                    "content": [block(OTHER), text("blurred")],
                },
                block(),
            ],
        },
    ]
    tools: Any = [{"name": "look", "input_schema": {"type": "object"}}]
    await claude.messages.create(model="tiny", max_tokens=5, messages=messages, tools=tools)
    assert [message["content"] for message in seeing.last_prompt.messages] == [
        [{"type": "image"}, text("Look there")],
        "",
        [text("Error: "), {"type": "image"}, text("blurred")],
        [{"type": "image"}],
    ]
    assert files(seeing.last_prompt) == [ONE, OTHER, ONE]
    counted = await claude.messages.count_tokens(model="tiny", messages=messages, tools=tools)
    assert counted.input_tokens == 3
    assert files(seeing.counted[0]) == [ONE, OTHER, ONE]


async def test_tokens_of_chats_with_pictures_are_told(plain: httpx2.AsyncClient, seeing: SeeingEngine) -> None:
    body = {"messages": [{"role": "user", "content": [part()]}]}
    assert (await plain.post("/tokenize", json=body)).json()["count"] == 3
    item = {"role": "user", "content": [{"type": "input_image", "image_url": data_uri(OTHER)}]}
    assert (await plain.post("/v1/responses/input_tokens", json={"input": [item]})).status_code == 200
    assert [files(prompt) for prompt in seeing.counted] == [[ONE], [OTHER]]


async def test_chats_over_a_websocket_have_pictures(listening: ListenAddress, seeing: SeeingEngine) -> None:
    body = {"messages": [{"role": "user", "content": [part(), text("Well?")]}]}
    bad = {"messages": [{"role": "user", "content": [part(b"%PDF-1.7")]}]}
    async with connect(f"{listening.url.replace('http', 'ws')}/v1/ws") as socket:
        await socket.send(json.dumps({"type": "request", "id": "a", "body": body}))
        assert json.loads(await socket.recv())["type"] == "completion"
        await socket.send(json.dumps({"type": "request", "id": "b", "body": bad}))
        refusal = json.loads(await socket.recv())
    assert (refusal["type"], refusal["error"]["code"]) == ("error", "unsupported_image_format")
    assert files(seeing.last_prompt) == [ONE]
    assert len(seeing.runs) == 1


# -- what is refused


BOMB = png_of_chunks(60_000, 60_000)
ANIMATED = file_of(picture(), "GIF", save_all=True, append_images=[picture(shade=80)])
ATTACKS: list[tuple[str, str, str]] = [
    (data_uri(BOMB), "invalid_image_input", "100000 pixels"),
    (data_uri(ONE[:-40]), "invalid_image_input", "truncated"),
    (data_uri(ONE, "image/jpeg"), "unsupported_image_format", "is said to be jpeg, and is png"),
    (data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "unsupported_image_format", "svg"),
    (data_uri(b"%PDF-1.7"), "unsupported_image_format", "pdf"),
    (data_uri(b"<!doctype html>", "text/html"), "unsupported_image_format", "text/html"),
    (data_uri(ANIMATED, "image/gif"), "unsupported_image_format", "animated"),
    (data_uri(png_of_chunks(0, 0)), "invalid_image_input", ""),
    ("data:image/png;base64,%%%%", "invalid_image_input", "base64"),
    ("data:image/png,AAAA", "invalid_image_input", "base64"),
    ("data:image/png;base64,", "invalid_image_input", "empty"),
    ("http://127.0.0.1/secret", "image_fetch_failed", "images.fetch.enabled"),
    ("https://user:secret@example.org/", "image_fetch_failed", "images.fetch.enabled"),
    ("file:///etc/secret", "unsafe_image_path", "images.folders"),
    ("/etc/secret", "unsafe_image_path", "images.folders"),
    ("../../secret", "unsafe_image_path", "images.folders"),
    ("ftp://example.org/secret", "invalid_image_input", "'ftp'"),
]


@pytest.mark.parametrize(("url", "code", "rule"), ATTACKS)
async def test_nothing_that_is_refused_reaches_the_engine(
    seen: AsyncOpenAI, seeing: SeeingEngine, log_lines: LogLines, url: str, code: str, rule: str
) -> None:
    bad: Any = {"type": "image_url", "image_url": {"url": url}}
    messages: Any = [{"role": "user", "content": "Hi"}, {"role": "user", "content": [part(), text("and"), bad]}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            await seen.chat.completions.create(model="tiny", messages=messages, stream=stream)
        body = cast("dict[str, Any]", raised.value.body)
        assert body["param"] == "messages[1].content[2].image_url.url"
        assert body["code"] == code
        assert rule in body["message"]
        assert "secret" not in str(body)
    assert seeing.runs == []
    assert "secret" not in str(log_lines)


async def test_the_fields_of_all_apis_are_named(
    plain: httpx2.AsyncClient, claude: AsyncAnthropic, seeing: SeeingEngine
) -> None:
    pdf = b"%PDF-1.7"
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("a"), block(pdf)]}
    image = {"type": "input_image", "image_url": data_uri(pdf)}
    asked: list[tuple[str, dict[str, Any], str]] = [
        ("/v1/responses", {"input": [{"role": "user", "content": [image]}]}, "input[0].content[0].image_url"),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [text("a"), block(pdf)]}]},
         "messages[0].content[1].source.data"),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [result]}]},
         "messages[0].content[0].content[1].source.data"),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "/etc/passwd"}}]}]},
         "messages[0].content[0].source.url"),
        ("/tokenize", {"messages": [{"role": "user", "content": [part(pdf)]}]}, "messages[0].content[0].image_url.url"),
    ]  # fmt: skip
    for path, body, field in asked:
        response = await plain.post(path, json=body)
        assert response.status_code == 400, path
        assert field in response.text
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.create(model="tiny", max_tokens=5, messages=asked[1][1]["messages"])
    assert seeing.runs == []
    assert seeing.counted == []


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"type": "image_url"}, "messages[0].content[0].image_url"),
        ({"type": "image_url", "image_url": 5}, "messages[0].content[0].image_url"),
        ({"type": "image_url", "image_url": {}}, "messages[0].content[0].image_url.url"),
        ({"type": "image_url", "image_url": {"url": ""}}, "messages[0].content[0].image_url.url"),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}, "messages[0].content[0].image_url.detail"),
        ({"type": "image_url", "image_url": {"url": "x", "size": 5}}, "messages[0].content[0].image_url.size"),
        ({"type": "image_url", "image_url": "x", "uuid": "u"}, "messages[0].content[0].uuid"),
        ({"type": "input_audio", "input_audio": {}}, "messages[0].content[0].type"),
        ({"type": "file", "file": {}}, "messages[0].content[0].type"),
        ({"type": "video_url", "video_url": {}}, "messages[0].content[0].type"),
    ],
)
async def test_parts_are_checked_like_everything_else(
    plain: httpx2.AsyncClient, bad: dict[str, Any], field: str
) -> None:
    response = await plain.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [bad]}]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


async def test_pictures_are_counted_in_pieces_bytes_and_pixels(plain: httpx2.AsyncClient, seeing: SeeingEngine) -> None:
    four = [{"role": "user", "content": [part(), part()]}, {"role": "user", "content": [part(), part(OTHER)]}]
    error = (await plain.post("/v1/chat/completions", json={"messages": four})).json()["error"]
    assert error["param"] == "messages[1].content[1].image_url.url"
    assert (error["details"]["limit"], error["details"]["given"]) == (3, 4)
    large = file_of(picture(size=(300, 300)), compress_level=0)
    seeing.images.reconfigure(replace(POLICY, max_bytes=1000), 1_000_000)
    response = await plain.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part(large)]}]})
    assert "at most 1000 bytes" in response.json()["error"]["message"]
    seeing.images.reconfigure(POLICY, 300_000)
    response = await plain.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part(large)]}]})
    assert response.json()["error"]["code"] == "image_encoding_failed"
    assert "worker.max_message_bytes" in response.json()["error"]["message"]
    assert seeing.runs == []


async def test_a_model_without_eyes_is_known_before_anything_is_fetched(
    plain: httpx2.AsyncClient, seeing: SeeingEngine
) -> None:
    seeing.takes_images = False
    response = await plain.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": [part(b"%PDF")]}]}
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert response.json()["error"]["param"] == "messages[0].content[0].image_url.url"


# -- the web and files


async def _serving_web(seeing: SeeingEngine, pages: Web) -> None:
    fetch = FetchPolicy(enabled=True, allowed_ports=f"80 {pages.port}", allowed_networks="127.0.0.1/32")
    seeing.images.reconfigure(replace(POLICY, fetch=fetch), 1_000_000)


async def test_pictures_are_fetched_where_it_is_switched_on(
    seen: AsyncOpenAI, claude: AsyncAnthropic, seeing: SeeingEngine, log_lines: LogLines
) -> None:
    async with web() as pages:
        await _serving_web(seeing, pages)
        pages.pages |= {"/go?key=secret": redirect("/a.png?key=secret"), "/a.png?key=secret": answer(ONE)}
        url = pages.url("/go?key=secret")
        messages: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        await seen.chat.completions.create(model="tiny", messages=messages)
        assert files(seeing.last_prompt) == [ONE]
        content: Any = [{"type": "image", "source": {"type": "url", "url": url}}]
        await claude.messages.create(model="tiny", max_tokens=5, messages=[{"role": "user", "content": content}])
        assert files(seeing.last_prompt) == [ONE]
        assert len(pages.requests) == 4
    assert "secret" not in str(log_lines)


async def test_no_redirect_leads_to_what_only_this_machine_reaches(seen: AsyncOpenAI, seeing: SeeingEngine) -> None:
    async with web() as pages:
        await _serving_web(seeing, pages)
        for target in ("http://169.254.169.254/secret", "http://[::1]/", "http://127.0.0.2/", "file:///etc/passwd"):
            pages.pages["/go"] = redirect(target)
            messages: Any = [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": pages.url("/go")}}]}
            ]
            with pytest.raises(openai.BadRequestError) as raised:
                await seen.chat.completions.create(model="tiny", messages=messages)
            assert cast("dict[str, Any]", raised.value.body)["code"] == "image_fetch_failed"
    assert seeing.runs == []


async def test_files_of_allowed_folders_may_be_named(
    plain: httpx2.AsyncClient, seeing: SeeingEngine, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(ONE)
    (tmp_path / "b.png").write_bytes(OTHER)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "b.png")
    seeing.images.reconfigure(replace(POLICY, folders=str(tmp_path / "in")), 1_000_000)

    async def code_of(url: str) -> str | None:
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        response = await plain.post("/v1/chat/completions", json={"messages": [message]})
        return response.json().get("error", {}).get("code")

    assert await code_of((tmp_path / "in" / "a.png").as_uri()) is None
    assert await code_of(str(tmp_path / "in" / "a.png")) is None
    assert await code_of(str(tmp_path / "in" / "nothing.png")) == "image_file_not_found"
    for outside in ("b.png", "in/../b.png", "in/link.png"):
        assert await code_of(str(tmp_path / outside)) == "unsafe_image_path"
    assert len(seeing.runs) == 2


async def test_who_leaves_while_a_picture_is_fetched_leaves_nothing_behind(
    listening: ListenAddress, seeing: SeeingEngine
) -> None:
    async with web() as pages:
        await _serving_web(seeing, pages)
        asked = asyncio.Event()

        def hanging() -> bytes:
            asked.set()
            return b"HTTP/1.1 200 OK\r\n\0and then nothing"

        pages.pages["/slow"] = hanging
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": pages.url("/slow")}}]}
        async with httpx2.AsyncClient(base_url=listening.url) as leaving:
            task = asyncio.create_task(leaving.post("/v1/chat/completions", json={"messages": [message]}))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert seeing.runs == []


# -- what is kept


async def test_requests_with_pictures_are_not_left_for_the_next_start(seeing: SeeingEngine, tmp_path: Path) -> None:
    handover = Handover(tmp_path / "resume", 60, seeing, width=1)
    seeing.script = replace(seeing.script, hang=True)
    async with (
        running(create_app(seeing, ServerSettings(), handover)) as address,
        httpx2.AsyncClient(base_url=address.url) as http,
    ):
        for content in ("Hi", [part()]):
            body = {"messages": [{"role": "user", "content": content}], "stream": True}
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                await (await seeing.next_run()).entered.wait()
                assert len(handover.journal.running()) == (content == "Hi")


async def test_models_tell_whether_they_take_pictures(plain: httpx2.AsyncClient, seeing: SeeingEngine) -> None:
    seeing.models[0] = replace(seeing.models[0], abilities=("completions", "chat", "vision"))
    listed = (await plain.get("/v1/models")).json()["data"]
    assert listed[0]["capabilities"] == ["completions", "chat", "vision"]


def test_a_body_of_the_usual_size_has_room_for_a_photograph_and_not_for_a_million_lists() -> None:
    assert ServerSettings().max_body_bytes > 10_000_000
    assert parse_json_object(b'{"a": "' + b"A" * 10_000_000 + b'"}')
    with pytest.raises(InvalidEnvelope, match="1000000 brackets"):
        parse_json_object(b'{"a": [' + b"[]," * 1_000_000 + b"[]]}")
