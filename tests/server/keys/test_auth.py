from __future__ import annotations

import dataclasses

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from mlx_serving.core.serving import CrashReport
from mlx_serving.server.app import create_app
from mlx_serving.server.settings import ServerSettings

from ..conftest import in_process
from ..scripted_engine import HEALTHY, ScriptedEngine

KEY = "s3cret-key-ü"
ADMIN_KEY = "adm1n-key"
SETTINGS = ServerSettings(api_key=KEY, admin_key=ADMIN_KEY, access_log=False)
GUARDED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/health"),
]


def _bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + key.encode()}


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_without_the_key_nobody_gets_in(method: str, path: str) -> None:
    async with in_process(ScriptedEngine(), SETTINGS) as http:
        response = await http.request(method, path, content=b"not even JSON")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "API key is required" in error["message"]


@pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1], "", "ÿ"])
async def test_a_wrong_key_is_refused_and_not_repeated(key: str) -> None:
    async with in_process(ScriptedEngine(), SETTINGS) as http:
        response = await http.get("/v1/models", headers=_bearer(key))
    assert response.status_code == 401
    assert KEY not in response.text


async def test_another_scheme_is_refused() -> None:
    async with in_process(ScriptedEngine(), SETTINGS) as http:
        response = await http.get("/v1/models", auth=httpx2.BasicAuth("user", "password"))
    assert response.status_code == 401


@pytest.mark.parametrize("key", [KEY, ADMIN_KEY])
async def test_the_key_and_the_admins_key_let_in(key: str) -> None:
    async with in_process(ScriptedEngine(), SETTINGS) as http:
        assert (await http.get("/v1/models", headers=_bearer(key))).status_code == 200


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json", "/"])
async def test_probes_and_descriptions_need_no_key(path: str) -> None:
    async with in_process(ScriptedEngine(), SETTINGS) as http:
        assert (await http.get(path)).status_code == 200


async def test_crash_reports_need_the_key() -> None:
    engine = ScriptedEngine()
    crash = CrashReport(1.0, "signal", signal="SIGABRT", stderr_tail="a path of the operator")
    engine.report = dataclasses.replace(HEALTHY, workers=(dataclasses.replace(HEALTHY.worker, last_crash=crash),))
    async with in_process(engine, SETTINGS) as http:
        for path in ("/health", "/health/live", "/health/ready"):
            assert "operator" not in (await http.get(path)).text
        assert "operator" in (await http.get("/health", headers=_bearer(KEY))).text


async def test_the_official_client_raises_its_authentication_error() -> None:
    transport = httpx2.ASGITransport(app=create_app(ScriptedEngine(), SETTINGS))
    async with (
        httpx2.AsyncClient(transport=transport) as inner,
        AsyncOpenAI(base_url="http://server/v1", api_key="wrong", max_retries=0, http_client=inner) as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_without_an_admin_key_administration_is_off_and_says_how_to_enable_it() -> None:
    async with in_process(ScriptedEngine(), ServerSettings(api_key=KEY, access_log=False)) as http:
        response = await http.post("/admin/models/load", json={"model": "org/new"}, headers=_bearer(KEY))
    assert response.status_code == 403
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "permission_denied")
    assert "server.admin_key" in error["message"]


@pytest.mark.parametrize("headers", [{}, _bearer("wrong"), _bearer(KEY)])
@pytest.mark.parametrize("path", ["/admin/models/load", "/admin/models/unload"])
async def test_the_key_of_the_api_does_not_administer(path: str, headers: dict[bytes, bytes]) -> None:
    engine = ScriptedEngine()
    async with in_process(engine, SETTINGS) as http:
        response = await http.post(path, json={"model": "tiny"}, headers=headers)
    assert response.status_code == 401
    assert (engine.loads, engine.unloads) == ([], [])


def test_keys_do_not_appear_when_settings_are_printed() -> None:
    assert KEY not in repr(SETTINGS)
    assert ADMIN_KEY not in repr(SETTINGS)
