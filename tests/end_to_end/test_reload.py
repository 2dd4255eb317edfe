"""SIGHUP and POST /admin/reload: another configuration under running requests."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx2

from .served_process import ServedProcess, serving
from .tiny_server import FORCED, HELLO, config_of

LENGTH = 3000
LONG: dict[str, Any] = {**FORCED, "max_tokens": LENGTH}


def write(home: Path, config: dict[str, object]) -> None:
    (home / "mlx-serving.yaml").write_text(json.dumps(config))


async def models_of(served: ServedProcess) -> list[str]:
    async with served.http() as http:
        return [model["id"] for model in (await http.get("/v1/models")).json()["data"]]


async def test_sighup_applies_what_changed_under_a_running_stream(tmp_path: Path, random_llama: Path) -> None:
    config = config_of(random_llama)
    second = shutil.copytree(random_llama, tmp_path / "second")
    async with serving(tmp_path, config=config) as served, served.openai() as client:
        pid = (await served.health())["worker"]["pid"]
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=LONG)
        await anext(stream)

        # A fresh worker, another version of the model that streams, a model more and one less, and an address.
        models = [{"model": str(second), "name": "tiny"}, {"model": str(random_llama), "name": "third"}]
        changed = config_of(
            random_llama, scheduler={"max_num_seqs": 7}, server={"api_key": "secret", "host": "localhost"}
        )
        write(tmp_path, {**changed, "models": {"served": models}})
        served.send_signal(signal.SIGHUP)
        told = await served.logged("configuration reloaded")
        assert {"server.api_key", "scheduler.max_num_seqs"} <= set(told["changed"])
        assert (told["models_added"], told["models_removed"], told["models_replaced"]) == (
            ["third"],
            ["short"],
            ["tiny"],
        )
        assert told["worker"] == "restarted"
        assert "secret" not in json.dumps(served.log)
        kept = await served.logged("a setting needs a new start")
        assert (kept["setting"], kept["value"], kept["wanted"]) == ("server.host", "127.0.0.1", "localhost")

        rest = [chunk async for chunk in stream]
        assert rest[-1].choices[0].finish_reason == "length"
        assert sum(len(chunk.choices[0].delta.content or "") for chunk in rest) in (LENGTH, LENGTH - 1)
        async with httpx2.AsyncClient(base_url=served.url) as http:
            assert (await http.get("/v1/models")).status_code == 401
            http.headers["authorization"] = "Bearer secret"
            assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["tiny", "third"]
            health = (await http.get("/health")).json()
            assert (health["worker"]["restarts"], health["worker"]["pid"] != pid) == (1, True)
            body = {"model": "third", "prompt": "Hi", "max_tokens": 1}
            assert (await http.post("/v1/completions", json=body, timeout=60)).status_code == 200


async def test_what_is_not_valid_is_logged_in_full_and_changes_nothing(tmp_path: Path, random_llama: Path) -> None:
    config = config_of(random_llama)
    async with serving(tmp_path, config=config) as served:
        write(tmp_path, {**config, "server": {"prot": 1, "drain_timeout_s": -1}})
        served.send_signal(signal.SIGHUP)
        refused = await served.logged("configuration refused")
        assert {problem["path"] for problem in refused["problems"]} == {"server.prot", "server.drain_timeout_s"}
        assert await models_of(served) == ["tiny", "short"]
        write(tmp_path, {**config, "server": {"drain_timeout_s": 7}})
        served.send_signal(signal.SIGHUP)
        await served.logged("configuration reloaded")
        served.send_signal(signal.SIGTERM)
        assert (await served.logged("draining"))["timeout_s"] == 7
        assert await served.ended() == 0


async def test_a_model_that_cannot_be_loaded_leaves_the_old_version(tmp_path: Path, random_llama: Path) -> None:
    config = config_of(random_llama)
    async with serving(tmp_path, config=config, keys={"admin_key": "operator"}) as served, served.openai() as client:
        models = [{"model": str(tmp_path / "missing"), "name": "tiny"}]
        write(tmp_path, {**config, "models": {"served": models}})
        async with served.http("admin_key") as http:
            reloaded = (await http.post("/admin/reload")).json()
        assert [failed["model"] for failed in reloaded["failed"]] == ["tiny"]
        assert (await served.logged("model not replaced"))["model"] == "tiny"
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1)
        assert answer.model == "tiny"
        assert (await served.health())["status"] == "healthy"


async def test_without_a_file_the_environment_and_the_flags_are_read_again(tmp_path: Path, random_llama: Path) -> None:
    async with serving(tmp_path, "--model", str(random_llama), "--set", "server.drain_timeout_s=9") as served:
        served.send_signal(signal.SIGHUP)
        told = await served.logged("configuration reloaded")
        assert (told["changed"], told["worker"]) == ([], "kept")
        assert await models_of(served) == [random_llama.name]
