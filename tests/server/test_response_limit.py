"""Answers that get longer than the operator allows."""

from __future__ import annotations

import pytest

from mlx_serving.server.settings import ServerSettings

from .conftest import in_process
from .scripted_engine import Script, ScriptedEngine

COMPLETIONS = "/v1/completions"
BODY = {"model": "tiny", "prompt": "Hi"}
LIMITED = ServerSettings(access_log=False, max_response_bytes=10)


async def test_a_whole_answer_that_gets_too_long_is_refused_and_its_computation_ended() -> None:
    engine = ScriptedEngine()
    engine.script = Script(pieces=("üüüüü", "x", "never"))
    async with in_process(engine, LIMITED) as http:
        refused = await http.post(COMPLETIONS, json=BODY)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert engine.runs[0].aborted
    assert engine.runs[0].taken == 2


async def test_a_stream_ends_with_an_error() -> None:
    engine = ScriptedEngine()
    engine.script = Script(pieces=("x" * 10, "y"))
    async with in_process(engine, LIMITED) as http:
        streamed = await http.post(COMPLETIONS, json={**BODY, "stream": True})
    assert "x" * 10 in streamed.text
    assert "longer than 10 bytes" in streamed.text
    assert "[DONE]" not in streamed.text


@pytest.mark.parametrize(("n", "status"), [(1, 200), (2, 400)])
async def test_all_choices_count_together_and_the_limit_itself_is_allowed(n: int, status: int) -> None:
    engine = ScriptedEngine()
    engine.script = Script(pieces=("x" * 10,))
    async with in_process(engine, LIMITED) as http:
        assert (await http.post(COMPLETIONS, json={**BODY, "n": n})).status_code == status
