"""Tokens."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from mlx_serving.core.generation import ChatPrompt

from .scripted_engine import ScriptedEngine

HI = [{"role": "user", "content": "Hi"}]


async def test_a_text_is_tokenized(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    answer = await http.post("/tokenize", json={"model": "tiny", "prompt": "Hello", "return_token_strs": True})
    assert answer.json() == {"count": 2, "max_model_len": 2048, "tokens": [1, 2], "token_strs": ["He", "llo"]}
    bare = await http.post("/tokenize", json={"prompt": "", "add_special_tokens": False})
    assert bare.json()["token_strs"] is None
    assert engine.tokenized == [("tiny", "Hello", True), ("tiny", "", False)]


async def test_a_conversation_is_tokenized_by_the_models_template(
    http: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    body = {"messages": HI, "chat_template_kwargs": {"mood": "dark"}, "add_generation_prompt": True}
    assert (await http.post("/tokenize", json=body)).json()["count"] == 3
    ((_, prompt, _),) = engine.tokenized
    assert prompt == ChatPrompt(tuple(HI), {"mood": "dark"})


async def test_tokens_become_text(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    assert (await http.post("/detokenize", json={"model": "tiny", "tokens": [1, 2]})).json() == {"prompt": "Hello"}
    assert engine.tokenized == [("tiny", (1, 2), True)]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HI}, 400, "prompt"),
        ("/tokenize", {"prompt": "a" * 150_000, "tools": []}, 400, "tools"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/tokenize", {"messages": [{"role": "nobody", "content": ""}]}, 400, "messages[0].role"),
        ("/tokenize", {"messages": HI, "add_generation_prompt": False}, 400, "add_generation_prompt"),
        ("/tokenize", {"messages": HI, "add_special_tokens": True}, 400, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "modle": "tiny"}, 400, "modle"),
        ("/tokenize", {"prompt": "a", "model": "missing"}, 404, None),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [2**40]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens"),
        ("/detokenize", {}, 400, "tokens"),
    ],
)
async def test_what_is_not_right_is_refused_by_name(
    http: httpx2.AsyncClient, path: str, body: dict[str, Any], status: int, field: str | None
) -> None:
    refused = await http.post(path, json=body)
    assert refused.status_code == status
    assert refused.json()["error"]["param"] == field


async def test_the_version_is_told(http: httpx2.AsyncClient) -> None:
    assert set((await http.get("/version")).json()) == {"version"}
