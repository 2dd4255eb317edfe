"""Pictures from the official clients to a real vision model, and what never gets to its worker."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from PIL import Image

from mlx_serving import Engine, ImageProcessedChunk
from mlx_serving.facade.shapes import MetadataChunk, TokenChunk

from ..command_line import run
from ..pictures import data_uri, file_of, picture, png, png_of_chunks
from ..web_pages import Web, answer, redirect, web
from .served_process import ServedProcess, serving
from .tiny_server import KEYS

ONE, OTHER = png(size=(56, 56)), file_of(Image.new("RGB", (84, 56), (250, 20, 40)))
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="session")
def seeing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ..tiny_vision_models import make  # imports MLX, which only making the model needs

    return make("qwen2_vl", tmp_path_factory.mktemp("models") / "seeing")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that requests may name files of."""
    made = tmp_path_factory.mktemp("pictures")
    (made / "one.png").write_bytes(ONE)
    return made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def port() -> AsyncGenerator[Web]:
    async with web() as pages:
        yield pages


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served(
    tmp_path_factory: pytest.TempPathFactory, seeing_model: Path, random_llama: Path, port: Web, folder: Path
) -> AsyncGenerator[ServedProcess]:
    config: dict[str, object] = {
        "models": {
            "served": [
                {"model": str(seeing_model), "name": "seeing"},
                {"model": str(random_llama), "name": "blind", "preload": False},
            ]
        },
        "images": {
            "max_images": 4,
            "max_pixels": 1_000_000,
            "folders": str(folder),
            "fetch": {
                "enabled": True,
                "allowed_ports": f"80 443 {port.port}",
                "allowed_networks": "127.0.0.1/32",
                "timeout_s": 10,
            },
        },
        "worker": {"backoff": {"initial_delay_s": 0.01}},
    }
    async with serving(tmp_path_factory.mktemp("seeing"), keys=KEYS, config=config) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="session")
async def seen(served: ServedProcess) -> AsyncGenerator[AsyncOpenAI]:
    async with served.openai() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def claude(served: ServedProcess) -> AsyncGenerator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=served.url, api_key=KEYS["api_key"], max_retries=0) as opened:
        yield opened


def told(*parts: Any) -> Any:
    given = [{"type": "text", "text": each} if isinstance(each, str) else each for each in parts]
    return [{"role": "user", "content": given}]


def part(source: bytes | str, **fields: Any) -> dict[str, Any]:
    url = source if isinstance(source, str) else data_uri(source)
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def said(message: Any) -> str:
    return "".join(block.text for block in message.content)


async def say(client: AsyncOpenAI, messages: Any, model: str = "seeing") -> tuple[str, int]:
    """The answer, and how many tokens the prompt had."""
    create: Any = client.chat.completions.create  # how it is asked is no matter of its overloads
    got = await create(model=model, messages=messages, **GREEDY)
    return got.choices[0].message.content or "", got.usage.prompt_tokens


async def test_the_picture_decides_and_equal_pixels_are_equal(seen: AsyncOpenAI) -> None:
    text, without = await say(seen, told("What is it?"))
    one, tokens = await say(seen, told("What is it?", part(ONE)))
    other, _ = await say(seen, told("What is it?", part(OTHER)))
    both, more = await say(seen, told("What is it?", part(ONE), "or", part(OTHER)))
    turned, _ = await say(seen, told("What is it?", part(OTHER), "or", part(ONE)))
    assert len({text, one, other, both, turned}) == 5
    assert without < tokens < more
    again = file_of(picture(size=(56, 56)), "BMP")
    assert await say(seen, told("What is it?", part(data_uri(again, "image/bmp")))) == (one, tokens)


async def test_pictures_come_by_url_and_by_path_as_well(
    seen: AsyncOpenAI, served: ServedProcess, port: Web, folder: Path
) -> None:
    inline = await say(seen, told(part(ONE), "Well?"))
    port.pages |= {"/go?key=hidden": redirect("/one.png"), "/one.png": answer(ONE)}
    assert await say(seen, told(part(port.url("/go?key=hidden")), "Well?")) == inline
    for name in (f"{folder}/one.png", f"file://{folder}/one.png"):
        assert await say(seen, told(part(name), "Well?")) == inline
    assert "hidden" not in str(served.log)


async def test_streams_and_several_answers_are_those_of_whole_ones(seen: AsyncOpenAI) -> None:
    messages = told(part(ONE), "What is it?")
    whole, _ = await say(seen, messages)
    create: Any = seen.chat.completions.create
    stream = await create(model="seeing", messages=messages, stream=True, n=2, **GREEDY)
    texts = ["", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [whole, whole]


async def test_a_conversation_goes_on_about_an_earlier_picture(seen: AsyncOpenAI) -> None:
    later: Any = [{"role": "assistant", "content": "That."}, {"role": "user", "content": "Why?"}]
    one, _ = await say(seen, [*told(part(ONE), "What?"), *later])
    other, _ = await say(seen, [*told(part(OTHER), "What?"), *later])
    assert one != other


async def test_anthropics_client_shows_pictures(claude: AsyncAnthropic) -> None:
    def block(data: bytes) -> dict[str, Any]:
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
        return {"type": "image", "source": source}

    def asked(*blocks: Any) -> dict[str, Any]:
        content = [*blocks, {"type": "text", "text": "What is it?"}]
        return {"model": "seeing", "messages": [{"role": "user", "content": content}]}

    greedy: dict[str, Any] = {"max_tokens": 12, "extra_body": {"temperature": 0}}
    create: Any = claude.messages.create
    one = await create(**asked(block(ONE)), **greedy)
    other = await create(**asked(block(OTHER)), **greedy)
    assert said(one) != said(other)
    async with claude.messages.stream(**asked(block(ONE)), **greedy) as stream:
        assert said(await stream.get_final_message()) == said(one)
    counted = await claude.messages.count_tokens(**asked(block(ONE)))
    assert counted.input_tokens == one.usage.input_tokens + (one.usage.cache_read_input_tokens or 0)


async def test_responses_go_on_from_a_picture(seen: AsyncOpenAI) -> None:
    async def answers(data: bytes) -> tuple[str, str]:
        content: Any = [
            {"type": "input_image", "image_url": data_uri(data), "detail": "auto"},
            {"type": "input_text", "text": "What is it?"},
        ]
        how: Any = {"model": "seeing", "temperature": 0, "max_output_tokens": 12}
        create: Any = seen.responses.create
        first = await create(input=[{"role": "user", "content": content}], **how)
        second = await create(input="Why?", previous_response_id=first.id, **how)
        return first.output_text, second.output_text

    one, other = await answers(ONE), await answers(OTHER)
    assert one[0] != other[0]
    assert one[1] != other[1]


async def test_a_stream_about_a_picture_survives_its_worker(seen: AsyncOpenAI, served: ServedProcess) -> None:
    messages = told(part(ONE), "What is it?")
    how: dict[str, Any] = {"temperature": 0, "max_tokens": 400, "extra_body": {"ignore_eos": True}}
    create: Any = seen.chat.completions.create
    whole = await create(model="seeing", messages=messages, **how)
    stream = await create(model="seeing", messages=messages, stream=True, **how)
    text, killed = "", False
    async for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        if text and not killed:
            killed = True
            os.kill((await served.health())["worker"]["pid"], signal.SIGKILL)
    assert text == whole.choices[0].message.content


async def test_none_of_the_attacks_reaches_the_worker(
    seen: AsyncOpenAI, claude: AsyncAnthropic, served: ServedProcess, port: Web, folder: Path
) -> None:
    await say(seen, told("Load, if you were not."))

    async def calls() -> tuple[int, int]:
        async with served.http("admin_key") as http:
            told = (await http.get("/admin/telemetry")).json()["runtime"]
            return told["generation"]["calls"], told["tokenization"]["calls"]

    before = await calls()
    port.pages |= {
        "/private": redirect("http://10.0.0.1/x.png"),
        "/metadata": redirect("http://169.254.169.254/latest/meta-data/"),
        "/six": redirect("http://[::ffff:169.254.169.254]/"),
        "/file": redirect("file:///etc/passwd"),
        "/round": redirect("/round"),
        "/page": answer(b"<html>", "text/html"),
        "/lie.png": answer(b"<html>", "image/png"),
        "/large.png": answer(b"", content_length=str(10**9)),
        "/bomb.png": answer(png_of_chunks(100_000, 100_000)),
    }
    animated = file_of(picture(), "WEBP", save_all=True, append_images=[picture(shade=70)])
    attacks = [
        *(port.url(path) for path in port.pages if path not in ("/one.png", "/go?key=hidden")),
        port.url("/one.png", "localhost.localdomain."),
        "http://127.0.0.2/", "http://[::1]/", "http://0/", "http://user:pass@127.0.0.1/", "http://127.0.0.1:22/",
        "https://169.254.169.254/", "gopher://127.0.0.1/", "/etc/passwd", "file:///proc/self/environ",
        f"{folder}/../x.png", f"{folder}/nothing.png",
        data_uri(ONE[:-60]), data_uri(ONE, "image/gif"), data_uri(animated, "image/webp"), data_uri(b"%PDF-"),
        data_uri(png_of_chunks(50_000, 50_000)), data_uri(b"<svg/>", "image/svg+xml"), "data:image/png;base64,?",
    ]  # fmt: skip

    async def refused(url: str) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            await say(seen, told("What is it?", part(url)))
        assert raised.value.param == "messages[0].content[1].image_url.url", url
        assert raised.value.code != "unsupported_parameter", url

    for url in attacks:
        await refused(url)
    with pytest.raises(openai.BadRequestError):
        await say(seen, told(*[part(ONE)] * 5))
    source: Any = {"type": "url", "url": "http://169.254.169.254/"}
    messages: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.create(model="seeing", max_tokens=1, messages=messages)
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.count_tokens(model="seeing", messages=messages)
    assert await calls() == before


async def test_programs_and_the_command_line_show_pictures(seeing_model: Path, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(ONE)
    async with Engine() as engine:
        handle = await engine.load_vision_model({"model": str(seeing_model), "name": "seeing"})
        assert handle.descriptor.modality == "vision"
        assert handle.max_image_size == 2048
        params: dict[str, Any] = {"model": "seeing", "prompt": "What is it?", "max_tokens": 8, "ignore_eos": True}
        chunks = [chunk async for chunk in engine.create_vision_generator({**params, "image": tmp_path / "one.png"})]
        assert isinstance(chunks[0], ImageProcessedChunk)
        assert isinstance(chunks[-1], MetadataChunk)
        said = "".join(chunk.token for chunk in chunks if isinstance(chunk, TokenChunk))
        content = [{"type": "image", "image": picture(size=(56, 56))}, {"type": "text", "text": "What is it?"}]
        how = {"model": "seeing", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        answered = await engine.chat({**how, "messages": [{"role": "user", "content": content}]})
        assert answered.text == said
    greedy = ("--temperature", "0", "--max-tokens", "8", "--image", "one.png")
    ended = await asyncio.to_thread(run, tmp_path, "generate", "What is it?", *greedy, "--model", str(seeing_model))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.strip("\n").startswith(said[:3])


async def test_a_model_without_eyes_says_so_before_and_after_it_is_loaded(
    seen: AsyncOpenAI, served: ServedProcess
) -> None:
    for _ in range(2):
        with pytest.raises(openai.BadRequestError) as raised:
            await say(seen, told("What is it?", part(ONE)), "blind")
        assert raised.value.code == "unsupported_parameter"
        assert raised.value.param == "messages[0].content[1].image_url.url"
    async with served.http() as http:
        models = (await http.get("/v1/models")).json()["data"]
    assert {model["id"]: "vision" in model["capabilities"] for model in models} == {"seeing": True, "blind": False}
