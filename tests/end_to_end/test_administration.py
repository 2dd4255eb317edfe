"""What only the operator may do while it serves."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from .served_process import ServedProcess, serving
from .tiny_server import FORCED, HELLO, KEYS, config_of


async def _post(tiny: ServedProcess, path: str, body: dict[str, object], key: str = "admin_key") -> httpx2.Response:
    async with tiny.http(key) as http:
        return await http.post(path, json=body)


async def test_the_operator_can_look_into_the_worker(tiny: ServedProcess, client: AsyncOpenAI) -> None:
    await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)
    async with tiny.http("admin_key") as http:
        told = (await http.get("/admin/telemetry")).json()
    assert told["worker_state"] == "ready"
    assert told["runtime"]["scheduler"]["models"]["tiny"]["done"]["steps"] >= 2
    assert told["runtime"]["generation"]["total_tokens"] >= 1
    async with tiny.http() as http:
        assert (await http.get("/admin/telemetry")).status_code == 401


async def test_a_model_is_loaded_used_and_unloaded(
    tiny: ServedProcess, client: AsyncOpenAI, random_llama: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(random_llama, tmp_path / "second")
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="second", messages=HELLO, max_tokens=1)

    loaded = await _post(tiny, "/admin/models/load", {"model": str(directory)})
    assert loaded.status_code == 200
    assert (loaded.json()["name"], loaded.json()["state"]) == ("second", "ready")
    assert "second" in [model.id async for model in client.models.list()]
    answer = await client.chat.completions.create(model="second", messages=HELLO, max_tokens=1)
    assert answer.model == "second"

    unloaded = await _post(tiny, "/admin/models/unload", {"model": "second"})
    assert unloaded.json() == {"name": "second", "unloaded": True}
    assert "second" not in (await tiny.health())["loaded_models"]


async def test_another_version_takes_over_the_name_and_the_streams_under_it(tmp_path: Path, random_llama: Path) -> None:
    length = 3000
    second = shutil.copytree(random_llama, tmp_path / "second")
    async with (
        serving(tmp_path, keys=KEYS, config=config_of(random_llama)) as served,
        served.openai() as client,
    ):
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, max_tokens=length, extra_body=FORCED
        )
        await anext(stream)
        taken = await _post(served, "/admin/models/load", {"model": str(second), "name": "tiny"})
        assert (taken.status_code, taken.json()["error"]["param"]) == (400, "name")
        replaced = await _post(served, "/admin/models/load", {"model": str(second), "name": "tiny", "replace": True})
        assert (replaced.status_code, replaced.json()["reference"]) == (200, str(second))
        rest = [chunk async for chunk in stream]
        moved = await served.logged("generation:recovered")
        assert (moved["losses"], moved["delivered"] < length) == (0, True)
        assert sum(len(chunk.choices[0].delta.content or "") for chunk in rest) in (length, length - 1)
        assert rest[-1].choices[0].finish_reason == "length"
        refused = await _post(served, "/admin/models/load", {"model": str(tmp_path), "name": "tiny", "replace": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        async with served.http() as http:
            assert (await http.get("/v1/models/tiny")).json()["state"] == "ready"


async def test_clients_may_not_administer(tiny: ServedProcess, random_llama: Path) -> None:
    for path in ("/admin/models/load", "/admin/models/unload"):
        refused = await _post(tiny, path, {"model": str(random_llama)}, key="api_key")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_a_model_that_cannot_be_loaded_is_told_and_disturbs_nobody(
    tiny: ServedProcess, client: AsyncOpenAI, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused = await _post(tiny, "/admin/models/load", {"model": str(tmp_path), "name": "broken"})
    assert refused.status_code == 500
    assert refused.json()["error"]["code"] == "model_load_failed"
    assert "broken" not in [model.id async for model in client.models.list()]
    await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1)


async def test_without_an_admin_key_administration_is_off(embedded: ServedProcess, random_llama: Path) -> None:
    refused = await _post(embedded, "/admin/models/load", {"model": str(random_llama)})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert "server.admin_key" in refused.json()["error"]["message"]
