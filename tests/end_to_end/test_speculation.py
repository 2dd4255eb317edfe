"""Draft models at a real server, asked by the official clients: answers are the same, and told how they came about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from .served_process import ServedProcess, serving
from .tiny_server import KEYS

LENGTH = 100
WAYS: Mapping[str, Mapping[str, object]] = {
    "off": {"speculation": "off"},
    "ngram": {"speculation": "ngram"},
    "small": {"draft_model": "small", "num_draft_tokens": 4},
    "itself": {"draft_model": "large"},
    "profile": {},
}
PROMPT: Any = [{"role": "user", "content": "Say it. Say it. Say it again: Say it."}]
SPECIAL: dict[str, int] = {str(token): -100 for token in range(256, 259)}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[ServedProcess]:
    """`large`, for which `small` drafts where a request is silent; `mute`, whose vocabulary is another one; `speller`,
    and `light`, which says the same at a small part of the cost."""
    from ..tiny_models import (
        make_llama,
        make_printable_llama,
        make_speller,
    )  # imports MLX, which only making the models needs

    home = tmp_path_factory.mktemp("drafts")
    models = home / "models"
    paths = {name: models / name for name in ("large", "small", "mute", "speller", "light")}
    for path in paths.values():
        path.mkdir(parents=True)
    make_llama(paths["large"], layers=3, context_length=2048)
    make_llama(paths["small"], layers=1, context_length=2048)
    make_printable_llama(paths["mute"])
    make_speller(paths["speller"], weight=8192)
    make_speller(paths["light"])
    profiles = {"large": {"draft_model": "small"}}
    config = {
        "models": {
            "served": [
                {"model": str(path), "name": name, "preload": False, "profile": profiles.get(name, {})}
                for name, path in paths.items()
            ]
        },
        "worker": {"backoff": {"initial_delay_s": 0.01}},
    }
    async with serving(home, keys=KEYS, config=config) as served:
        yield served


async def answer(
    client: AsyncOpenAI, way: str, *, temperature: float = 0, seed: int | None = None
) -> tuple[str, dict[str, Any] | None]:
    """The text of a chat that is drafted that way, and what its usage tells of it."""
    told = await client.chat.completions.create(
        model="large",
        messages=PROMPT,
        max_tokens=LENGTH,
        logit_bias=SPECIAL,
        temperature=temperature,
        seed=seed,
        extra_body=WAYS[way],
    )
    assert told.usage is not None
    assert told.usage.completion_tokens == LENGTH
    details = told.usage.completion_tokens_details
    return told.choices[0].message.content or "", None if details is None else details.model_dump(exclude_none=True)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 11}])
async def test_answers_are_the_same_alone_and_in_a_crowd_however_they_are_drafted(
    served: ServedProcess, sampling: dict[str, Any]
) -> None:
    async with served.openai() as client:
        plain, details = await answer(client, "off", **sampling)
        assert details is None
        alone = {way: await answer(client, way, **sampling) for way in WAYS}
        crowd = await asyncio.gather(*(answer(client, way, **sampling) for way in WAYS for _ in range(2)))
    assert {text for text, _ in (*alone.values(), *crowd)} == {plain}
    how = {way: details and details["speculation"] for way, (_, details) in alone.items()}
    assert how == {"off": None, "ngram": "ngram", "small": "draft", "itself": "draft", "profile": "draft"}
    itself = alone["itself"][1]
    assert itself is not None
    assert itself["rejected_prediction_tokens"] == 0


async def test_an_answer_with_a_form_says_that_nobody_drafted(served: ServedProcess) -> None:
    async with served.openai() as client:
        told = await client.chat.completions.create(
            model="large", messages=PROMPT, extra_body={"structured_outputs": {"regex": "[ab]{20}"}}
        )
    assert told.usage is not None
    assert told.usage.completion_tokens_details is not None
    assert told.usage.completion_tokens_details.model_dump()["speculation"] == "structured"


@pytest.mark.parametrize(
    ("draft", "told"),
    [
        ("mute", "draft_model: mute cannot draft for large: The vocabularies differ in size: 259 and 512"),
        ("smal", "draft_model: the model smal is not served here; did you mean small?"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_draft_model_that_cannot_be_is_a_400_that_names_it(
    served: ServedProcess, draft: str, told: str, stream: bool
) -> None:
    async with served.http("api_key") as http:
        body = {"model": "large", "messages": PROMPT, "draft_model": draft, "stream": stream}
        response = await http.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "draft_model")
    assert error["message"].startswith(told)


async def test_the_profile_holds_for_every_api(served: ServedProcess) -> None:
    async with served.http("api_key") as http:
        anthropic = await http.post("/v1/messages", json={"model": "large", "messages": PROMPT, "max_tokens": 20})
        responses = await http.post(
            "/v1/responses", json={"model": "large", "input": "Hello", "max_output_tokens": 20, "store": False}
        )
    for response in (anthropic, responses):
        assert response.status_code == 200, response.text
        assert response.headers["x-speculation"].startswith("draft")


async def test_what_was_drafted_is_counted_by_request_and_by_worker(served: ServedProcess) -> None:
    async def counted(http: httpx2.AsyncClient) -> dict[str, int]:
        return (await http.get("/admin/telemetry")).json()["runtime"]["speculation"]

    asked = {"model": "speller", "prompt": "a", "max_tokens": 30, "temperature": 0}
    async with served.http("api_key") as http, served.http("admin_key") as admin:
        plain = (await http.post("/v1/completions", json={**asked, "speculation": "off"})).json()
        before = await counted(admin)
        drafted = (await http.post("/v1/completions", json={**asked, "draft_model": "light"})).json()
        after = await counted(admin)
    assert drafted["choices"] == plain["choices"]
    details = drafted["usage"]["completion_tokens_details"]
    assert after["accepted"] - before["accepted"] == details["accepted_prediction_tokens"] > 0
    assert details["rejected_prediction_tokens"] == 0
