"""More models than memory holds, and names that move, at a real server."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from ..command_line import LIMIT_S, command, environment
from ..tiny_models import make_llama
from .served_process import ServedProcess, serving
from .tiny_server import KEYS

NAMES = ("one", "two", "three")
LENGTH = 120


def make_models(home: Path, **shape: Any) -> dict[str, Path]:
    return {name: make_llama(home / name, seed=seed, **shape) for seed, name in enumerate(NAMES)}


async def answer(client: AsyncOpenAI, model: str, length: int = LENGTH) -> str:
    """What the model says greedily, as a stream."""
    special = {str(token): -100 for token in range(256, 259)}
    chunks = await client.completions.create(
        model=model, prompt="Hello", max_tokens=length, temperature=0, stream=True, logit_bias=special
    )
    parts = [chunk async for chunk in chunks]
    assert parts[-1].choices[0].finish_reason == "length"
    return "".join(part.choices[0].text for part in parts)


async def test_a_name_moves_under_eight_streams_without_an_error(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", context_length=2048)
    config = {
        "models": {
            "default": "chat",
            "served": [{"model": str(path), "name": name} for name, path in models.items()],
            "aliases": [{"name": "chat", "model": "one"}],
        }
    }
    async with serving(tmp_path, keys=KEYS, config=config) as served, served.openai() as client:
        texts = {name: await answer(client, name) for name in NAMES}
        assert len(set(texts.values())) == len(NAMES)
        moved = asyncio.Event()
        seen: list[str] = []

        async def read(number: int) -> None:
            turn = 0
            while not moved.is_set() or turn == 0:
                text = await answer(client, "chat")
                assert text in texts.values(), "a stream of two models"
                seen.append(text)
                turn += 1

        readers = [asyncio.create_task(read(number)) for number in range(8)]
        async with served.http("admin_key") as http:
            for model in ("two", "three", "one", "two"):
                before = len(seen)
                answered = await http.put("/admin/aliases/chat", json={"model": model})
                assert (answered.status_code, answered.json()["model"]) == (200, model)
                assert await answer(client, "chat") == texts[model]
                while len(seen) < before + 4:
                    await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
            back = (await http.post("/admin/aliases/chat/rollback")).json()
            assert back["alias"]["model"] == "one"
            assert await answer(client, "chat") == texts["one"]
        moved.set()
        await asyncio.gather(*readers)
        assert len(set(seen)) >= 2
        listed = {model.id: model for model in (await client.models.list()).data}
        assert listed.keys() == {*NAMES, "chat"}
        assert listed["chat"].model_dump()["parent"] == "one"
        told = await _cli(tmp_path, served, "alias", "list", "--json")
        assert told["data"][0]["model"] == "one"
        assert (await _cli(tmp_path, served, "alias", "set", "chat", "three", "--json"))["model"] == "three"
        assert await answer(client, "chat") == texts["three"]
        loaded = ("models", "load", str(models["two"]), "--name", "two", "--pin", "--keep-alive", "5m", "--json")
        told = await _cli(tmp_path, served, *loaded)
        assert (told["state"], told["pinned"], told["keep_alive_s"]) == ("ready", True, 300.0)
        assert await _cli(tmp_path, served, "models", "unload", "two", "--json") == {"name": "two", "unloaded": True}


async def _cli(home: Path, served: ServedProcess, *arguments: str) -> dict[str, Any]:
    secrets = {"MLX_SERVING_SERVER__ADMIN_KEY": KEYS["admin_key"]}
    process = await asyncio.create_subprocess_exec(
        *command(*arguments, "--url", served.url),
        cwd=home,
        env={**environment(home), **secrets},
        stdout=subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0
    return json.loads(output)


async def test_three_models_with_room_for_two_fail_nobody(tmp_path: Path) -> None:
    # Caches that are small beside the weights: what is tried here is room for models.
    models = make_models(tmp_path / "models", layers=16, head_dim=4, context_length=512)
    weights = sum(file.stat().st_size for file in models["one"].glob("*.safetensors"))
    limit, spare = int(2.9 * weights), weights // 10
    config = {
        "models": {"served": [{"model": str(path), "name": name, "preload": False} for name, path in models.items()]},
        "memory": {"limit_bytes": limit, "prefill_bytes": spare, "buffer_cache_bytes": spare},
    }
    chance = random.Random(7)
    async with serving(tmp_path, keys=KEYS, config=config) as served, served.openai() as client:
        texts = {name: await answer(client, name, 24) for name in NAMES}

        async def switch() -> None:
            for _ in range(5):
                name = chance.choice(NAMES)
                assert await answer(client, name, 24) == texts[name]

        await asyncio.gather(*(switch() for _ in range(4)))
        evicted = [line for line in served.log if line["event"] == "model:evicted"]
        assert evicted
        assert not [line for line in served.log if line["event"] in ("error", "generation:recovered")]
        async with served.http("admin_key") as http:
            rows = (await http.get("/admin/models")).json()["data"]
        loaded = [row for row in rows if row["state"] == "ready"]
        assert 1 <= len(loaded) <= 2
        assert sum(row["memory_bytes"] for row in loaded) <= limit


async def test_who_names_what_is_not_served_is_refused(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models")
    config = {"models": {"served": [{"model": str(models["one"]), "name": "one"}]}}
    async with serving(tmp_path, keys=KEYS, config=config) as served, served.http() as http:
        for name in (str(models["two"]), "mlx-community/Qwen3-4B-4bit", "two", "smollm2-135m"):
            body = {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
            refused = await http.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
