"""What was computed before a restart or a crash is read after it, and the text is the same."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from ..command_line import LIMIT_S
from .served_process import ServedProcess, serving
from .tiny_server import KEYS, config_of

_PROMPT: Any = [{"role": "user", "content": "Tell me what it was that I have asked you. " * 8}]
_SEEDED: Any = {
    "seed": 5,
    "temperature": 0.9,
    "top_p": 0.9,
    "logit_bias": {str(special): -100 for special in range(256, 259)},
}


async def _answer(client: AsyncOpenAI, max_tokens: int = 24) -> tuple[str, int]:
    """The text, and how many tokens of the prompt were kept."""
    answer: ChatCompletion = await client.chat.completions.create(
        model="tiny", messages=_PROMPT, max_tokens=max_tokens, extra_body=_SEEDED
    )
    assert answer.usage is not None
    details = answer.usage.prompt_tokens_details
    return answer.choices[0].message.content or "", 0 if details is None else details.cached_tokens or 0


def _config(model: Path, folder: Path) -> dict[str, object]:
    return config_of(model, prefix_cache={"disk": {"path": str(folder)}})


async def _disk(server: ServedProcess) -> dict[str, Any]:
    """What the worker says of the folder."""
    async with server.http("admin_key") as http:
        told = (await http.get("/admin/telemetry")).json()
        return told["runtime"]["caches"]["prefix_disk"] if told["runtime"] else {"written": 0}


async def test_a_server_that_starts_again_reads_what_the_last_one_computed(tiny_model: Path, tmp_path: Path) -> None:
    config = _config(tiny_model, tmp_path / "prefixes")
    async with serving(tmp_path, config=config) as server, server.openai() as client:
        text, cached = await _answer(client)
        assert cached == 0
    async with serving(tmp_path, config=config) as server, server.openai() as client:
        again, cached = await _answer(client)
    assert again == text
    assert cached > 300
    config = config_of(tiny_model, prefix_cache={"enabled": False})
    async with serving(tmp_path, config=config) as server, server.openai() as client:
        assert await _answer(client) == (text, 0)


async def test_a_folder_that_is_of_no_use_is_told_of_and_disturbs_nobody(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = _config(tiny_model, tmp_path / "file" / "prefixes")
    async with serving(tmp_path, config=config) as server, server.openai() as client:
        text, _ = await _answer(client)
        assert len(text) > 0
        told = await server.logged("prefix cache refused")
        assert told["path"] == str(tmp_path / "file" / "prefixes")


async def test_a_stream_whose_worker_is_killed_goes_on_from_disk(tiny_model: Path, tmp_path: Path) -> None:
    tokens = 1000
    config = _config(tiny_model, tmp_path / "prefixes")
    async with serving(tmp_path, config=config, keys=KEYS) as server, server.openai() as client:
        expected, _ = await _answer(client, tokens)
        async with asyncio.timeout(LIMIT_S):
            while not (disk := await _disk(server))["written"] or disk["pending"]:
                pass  # every answer takes a round trip, which is wait enough
        stream = await client.chat.completions.create(
            model="tiny", messages=_PROMPT, max_tokens=tokens, stream=True, extra_body=_SEEDED
        )
        text = ""
        async for chunk in stream:
            if not text and chunk.choices[0].delta.content:
                os.kill((await server.health())["worker"]["pid"], signal.SIGKILL)
            text += chunk.choices[0].delta.content or ""
        assert text == expected
        disk = await _disk(server)
        assert disk["read_tokens"] > 300
        assert disk["damaged"] == 0
