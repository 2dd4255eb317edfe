from __future__ import annotations

import httpx2
import openai
import pytest
from openai import AsyncOpenAI


async def test_the_served_models_are_listed(client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == ["tiny", "org/other"]
    assert models[0].created == 1_700_000_000
    assert models[0].object == "model"


@pytest.mark.parametrize("name", ["tiny", "org/other"])
async def test_one_model_is_found_by_its_name_also_with_a_slash(client: AsyncOpenAI, name: str) -> None:
    assert (await client.models.retrieve(name)).id == name


async def test_a_slash_may_come_as_it_is(http: httpx2.AsyncClient) -> None:
    response = await http.get("/v1/models/org/other")
    assert response.json() == {
        "id": "org/other",
        "object": "model",
        "created": 1_700_000_001,
        "owned_by": "mlx-serving",
        "state": "absent",
        "context_length": None,
        "max_model_len": None,
        "root": "org/other",
        "parent": None,
        "capabilities": None,
        "default": False,
        "profile": {},
        "progress": None,
    }


async def test_the_default_model_is_marked(http: httpx2.AsyncClient) -> None:
    assert [model["default"] for model in (await http.get("/v1/models")).json()["data"]] == [True, False]


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await client.models.retrieve("missing")
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/chat/completions/", "/nothing", "/docs"])
async def test_a_path_that_does_not_exist_is_an_error_in_the_usual_shape(http: httpx2.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": f"There is no GET {path}; GET / lists what there is",
        "type": "not_found_error",
        "param": None,
        "code": "unknown_url",
    }


async def test_a_wrong_method_is_told_the_right_one(http: httpx2.AsyncClient) -> None:
    response = await http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "method_not_allowed")
    assert "takes POST" in error["message"]


async def test_the_index_lists_what_there_is(http: httpx2.AsyncClient) -> None:
    response = await http.get("/")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    address = str(http.base_url).rstrip("/")
    for expected in ("POST   /v1/chat/completions", "GET    /health/ready", "/openapi.json", f"base_url={address}/v1"):
        assert expected in response.text
