"""What every answer says of itself."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from mlx_serving.errors import Overloaded
from mlx_serving.server.http.response_headers import _duration, usable_id  # pyright: ignore[reportPrivateUsage]
from mlx_serving.server.settings import ServerSettings

from ..conftest import LogLines, in_process
from ..scripted_engine import Script, ScriptedEngine

COMPLETIONS = "/v1/completions"
BODY = {"model": "tiny", "prompt": "Hi"}
ORIGIN = "https://chat.example.org"


@pytest.mark.parametrize("body", [BODY, {**BODY, "stream": True}, {"prompt": 1}])
async def test_the_clients_id_comes_back_and_into_the_log(log_lines: LogLines, body: dict[str, Any]) -> None:
    async with in_process(ScriptedEngine(), ServerSettings()) as http:
        answer = await http.post(COMPLETIONS, json=body, headers={"x-request-id": "mine/1:2"})
    assert answer.headers["x-request-id"] == "mine/1:2"
    (line,) = [line for line in log_lines if line["event"] == "request"]
    assert line["request_id"] == "mine/1:2"
    assert len(str(line["own_id"])) == 32


async def test_two_requests_may_have_the_same_id(log_lines: LogLines) -> None:
    engine = ScriptedEngine()
    async with in_process(engine, ServerSettings()) as http:
        for _ in range(2):
            assert (await http.post(COMPLETIONS, json=BODY, headers={"x-request-id": "same"})).status_code == 200
    assert len({run.request.request_id for run in engine.runs}) == 2


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ü", 'quote"', "semi;colon"])
async def test_an_id_that_may_not_be_repeated_is_replaced(given: str) -> None:
    async with in_process(ScriptedEngine(), ServerSettings(access_log=False)) as http:
        answer = await http.get("/version", headers={b"x-request-id": given.encode()})
    assert len(answer.headers["x-request-id"]) == 32
    assert usable_id(given) is None


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_tells_how_long_it_took(stream: bool) -> None:
    engine = ScriptedEngine()
    async with in_process(engine, ServerSettings(access_log=False)) as http:
        answer = await http.post(COMPLETIONS, json={**BODY, "stream": stream})
        engine.script = Script(refusal=Overloaded("full", retry_after=2))
        refused = await http.post(COMPLETIONS, json={**BODY, "stream": stream})
    assert int(answer.headers["openai-processing-ms"]) >= 0
    timings = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    assert [name for name, _ in timings] == ["accept", "total"]
    assert 0 <= float(timings[0][1]) <= float(timings[1][1])
    assert refused.headers["server-timing"].startswith("total;dur=")


async def test_nobody_on_the_way_keeps_or_guesses() -> None:
    async with in_process(ScriptedEngine(), ServerSettings(access_log=False)) as http:
        whole = await http.post(COMPLETIONS, json=BODY)
        streamed = await http.post(COMPLETIONS, json={**BODY, "stream": True})
    assert (whole.headers["cache-control"], whole.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert streamed.headers["cache-control"] == "no-cache"
    assert "x-cache" not in whole.headers


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.02, "20ms"), (1.25, "1.25s"), (59.9, "59.9s"), (360, "6m0s"), (3725, "62m5s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def _cross(**headers: str) -> dict[str, str]:
    return {"origin": ORIGIN, **headers}


async def _preflight(http: httpx2.AsyncClient) -> httpx2.Response:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    return await http.options(COMPLETIONS, headers=_cross(**asked))


async def test_scripts_of_other_origins_get_no_permission_by_default() -> None:
    async with in_process(ScriptedEngine(), ServerSettings(access_log=False)) as http:
        assert "access-control-allow-origin" not in (await _preflight(http)).headers
        assert "access-control-allow-origin" not in (await http.get("/version", headers=_cross())).headers


@pytest.mark.parametrize("allowed", [(ORIGIN, "https://other"), ("*",)])
async def test_origins_may_be_allowed(allowed: tuple[str, ...]) -> None:
    settings = ServerSettings(access_log=False, api_key="k", cors_origins=allowed)
    async with in_process(ScriptedEngine(), settings) as http:
        preflight = await _preflight(http)  # which never has a key
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] in (ORIGIN, "*")
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        refused = await http.post(COMPLETIONS, json=BODY, headers=_cross())
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] in (ORIGIN, "*")
        assert "x-request-id" in refused.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in refused.headers


async def test_another_origin_than_the_allowed_ones_gets_none() -> None:
    settings = ServerSettings(access_log=False, cors_origins=("https://other",))
    async with in_process(ScriptedEngine(), settings) as http:
        assert (await _preflight(http)).status_code == 400
        assert "access-control-allow-origin" not in (await http.get("/version", headers=_cross())).headers
