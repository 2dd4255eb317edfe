from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from mlx_serving.core.model_profile import ModelProfile
from mlx_serving.server.settings import ServerSettings

from .conftest import in_process
from .scripted_engine import ScriptedEngine

ALIASES = "/admin/aliases"


async def test_what_is_configured_is_listed(admin: httpx2.AsyncClient) -> None:
    listed = (await admin.get(ALIASES)).json()
    configured: dict[str, object] = {"model": "tiny", "profile": {}, "since": None}
    assert listed == {
        "data": [
            {**configured, "name": "configured", "source": "configured", "configured": configured, "history": []},
        ]
    }


async def test_an_alias_is_moved_rolled_back_and_removed(admin: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    moved = await admin.put(f"{ALIASES}/chat", json={"model": "tiny", "profile": {"temperature": 0.5, "stop": ["."]}})
    assert moved.status_code == 200
    assert moved.json()["profile"] == {"temperature": 0.5, "stop": ["."]}
    target = engine.aliases.target("chat")
    assert target is not None
    assert target.profile == ModelProfile(temperature=0.5, stop=(".",))
    moved = await admin.put(f"{ALIASES}/chat", json={"model": "org/other", "revision": "main"})
    assert (moved.json()["model"], moved.json()["source"]) == ("org/other", "set")
    assert [before["model"] for before in moved.json()["history"]] == ["tiny"]
    back = await admin.post(f"{ALIASES}/chat/rollback")
    assert back.json()["alias"]["model"] == "tiny"
    assert (await admin.get(f"{ALIASES}/chat")).json() == back.json()["alias"]
    assert (await admin.delete(f"{ALIASES}/chat")).json() == {"name": "chat", "alias": None}
    gone = await admin.get(f"{ALIASES}/chat")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_a_name_may_have_a_slash(admin: httpx2.AsyncClient) -> None:
    assert (await admin.put(f"{ALIASES}/org/chat", json={"model": "tiny"})).json()["name"] == "org/chat"
    assert (await admin.put(f"{ALIASES}/org/chat", json={"model": "org/other"})).status_code == 200
    assert (await admin.post(f"{ALIASES}/org/chat/rollback")).json()["alias"]["model"] == "tiny"


async def test_a_model_under_its_own_name_is_what_is_left_at_the_end(admin: httpx2.AsyncClient) -> None:
    await admin.put(f"{ALIASES}/tiny", json={"model": "org/other"})
    assert (await admin.post(f"{ALIASES}/tiny/rollback")).json() == {"name": "tiny", "alias": None}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "model"),
        ({"model": ""}, "model"),
        ({"model": "tiny", "revison": "main"}, "revison"),
        ({"model": "tiny", "profile": {"temperature": 3}}, "profile.temperature"),
        ({"model": "tiny", "profile": {"temprature": 1}}, "profile.temprature"),
        ({"model": "tiny", "profile": {"max_tokens": 5, "max_tokens_limit": 4}}, "profile.max_tokens"),
        ({"model": "tiny", "profile": {"draft_model": "tiny", "speculation": "off"}}, "profile.draft_model"),
    ],
)
async def test_what_is_wrong_is_named(admin: httpx2.AsyncClient, body: dict[str, object], field: str) -> None:
    refused = await admin.put(f"{ALIASES}/chat", json=body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == field
    assert field in error["message"]


async def test_what_cannot_be_done_is_told(admin: httpx2.AsyncClient) -> None:
    assert (await admin.put(f"{ALIASES}/chat", json={"model": "org/missing"})).status_code == 404
    assert (await admin.post(f"{ALIASES}/chat/rollback")).status_code == 404
    assert (await admin.post(f"{ALIASES}/configured/rollback")).status_code == 400
    removed = await admin.delete(f"{ALIASES}/configured")
    assert (removed.status_code, removed.json()["error"]["param"]) == (400, "name")


async def test_an_alias_leads_to_no_path_that_is_not_trusted(engine: ScriptedEngine, tmp_path: Path) -> None:
    settings = ServerSettings(admin_key="key", access_log=False, trusted_paths=(tmp_path,))
    async with in_process(engine, settings) as http:
        http.headers["authorization"] = "Bearer key"
        refused = await http.put(f"{ALIASES}/chat", json={"model": "/etc/model"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
        for model in ("tiny", "org/other", str(tmp_path / "model")):
            assert (await http.put(f"{ALIASES}/chat", json={"model": model})).status_code == 200


async def test_clients_may_not_move_names(http: httpx2.AsyncClient) -> None:
    refused = [
        await http.get(ALIASES),
        await http.put(f"{ALIASES}/chat", json={"model": "tiny"}),
        await http.delete(f"{ALIASES}/chat"),
        await http.post(f"{ALIASES}/chat/rollback"),
        await http.get("/admin/models"),
    ]
    assert {response.status_code for response in refused} <= {401, 403}


async def test_models_are_described_to_the_operator(admin: httpx2.AsyncClient) -> None:
    listed = (await admin.get("/admin/models")).json()["data"]
    assert [model["name"] for model in listed] == ["tiny", "org/other"]
