"""What a new user does first."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from openai import OpenAI

from ..command_line import LIMIT_S
from .served_process import ServedProcess

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl")
async def test_the_curl_of_the_readme_answers_paris(embedded: ServedProcess) -> None:
    found = re.search(r"(curl http://127\.0\.0\.1:8000.*?)\n\{", README.read_text(), re.DOTALL)
    assert found is not None
    typed = found[1].replace("http://127.0.0.1:8000", embedded.url).replace("\\\n", "")
    process = await asyncio.create_subprocess_exec(
        *shlex.split(typed), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    answer = json.loads(out)
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_the_program_of_the_readme_streams_an_answer(embedded: ServedProcess) -> None:
    with OpenAI(base_url=f"{embedded.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            stream=True,
            temperature=0,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len([piece for piece in pieces if piece]) > 1  # as it came, not at the end
    assert "Paris" in "".join(pieces)


async def test_the_whole_conversation_reaches_the_model(embedded: ServedProcess) -> None:
    async with embedded.openai() as client:
        answer = await client.chat.completions.create(
            model="smollm2-135m",
            messages=[
                {"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": "The capital of France is Paris."},
                {"role": "user", "content": "And of Germany?"},
            ],
            temperature=0,
            max_tokens=12,
        )
    assert "Berlin" in (answer.choices[0].message.content or "")


async def test_completions_continue_the_text_without_a_template(embedded: ServedProcess) -> None:
    async with embedded.openai() as client:
        answer = await client.completions.create(
            model="smollm2-135m", prompt="The capital of France is", temperature=0, max_tokens=3
        )
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5  # no template around it


async def test_everything_is_up_without_a_configuration(embedded: ServedProcess) -> None:
    async with embedded.openai() as client:
        assert [model.id async for model in client.models.list()] == ["smollm2-135m"]
    health = await embedded.health()
    assert (health["status"], health["worker"]["state"]) == ("healthy", "ready")
    assert health["loaded_models"] == ["smollm2-135m"]
