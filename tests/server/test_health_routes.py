from __future__ import annotations

import dataclasses

import httpx2
import pytest

from mlx_serving.core.serving import CrashReport, HealthReport, HealthStatus, ServedModelState, WorkerHealth
from mlx_serving.server.app import create_app
from mlx_serving.server.settings import ServerSettings

from .conftest import in_process
from .scripted_engine import HEALTHY, TINY, ScriptedEngine

QUIET = ServerSettings(access_log=False)


@pytest.mark.parametrize(("status", "expected"), [("healthy", 200), ("degraded", 200), ("unhealthy", 503)])
@pytest.mark.parametrize("path", ["/health/live", "/health"])
async def test_only_what_needs_a_person_is_not_alive(path: str, status: HealthStatus, expected: int) -> None:
    engine = ScriptedEngine()
    engine.report = dataclasses.replace(HEALTHY, status=status)
    async with in_process(engine, QUIET) as http:
        response = await http.get(path)
    assert response.status_code == expected
    assert response.json()["status"] == status


@pytest.mark.parametrize("state", ["absent", "loading", "draining", "failed"])
async def test_it_is_not_ready_before_the_default_model_is(state: ServedModelState) -> None:
    engine = ScriptedEngine()
    engine.models = [dataclasses.replace(TINY, state=state)]
    async with in_process(engine, QUIET) as http:
        response = await http.get("/health/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "reason": f"the default model 'tiny' is {state}"}


async def test_it_is_ready_when_the_default_model_is() -> None:
    async with in_process(ScriptedEngine(), QUIET) as http:
        response = await http.get("/health/ready")
    assert response.status_code == 200
    assert response.json() == {"ready": True, "reason": None}


async def test_the_default_model_of_the_settings_is_the_one_that_counts() -> None:
    async with in_process(ScriptedEngine(), dataclasses.replace(QUIET, default_model="org/other")) as http:
        assert (await http.get("/health/ready")).json()["reason"] == "the default model 'org/other' is absent"
    async with in_process(ScriptedEngine(), dataclasses.replace(QUIET, default_model="gone")) as http:
        assert (await http.get("/health/ready")).json()["reason"] == "no default model is served"


async def test_it_is_not_ready_while_it_drains() -> None:
    app = create_app(ScriptedEngine(), QUIET)
    app.in_flight.close()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://server") as http:
        ready, live, health = [await http.get(path) for path in ("/health/ready", "/health/live", "/health")]
        refused = await http.post("/v1/completions", json={"prompt": "Hi"})
    assert ready.status_code == 503
    assert ready.json()["reason"] == "the server is shutting down"
    assert live.status_code == 200
    assert health.json()["draining"] is True
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"


async def test_health_tells_everything() -> None:
    engine = ScriptedEngine()
    crash = CrashReport(
        1_700_000_000.5, "killed", None, "SIGKILL", "out of memory", "use a smaller model", "last words"
    )
    engine.report = HealthReport(
        "degraded",
        60.0,
        2,
        ("tiny",),
        (WorkerHealth("backing_off", 1_700_000_001.0, None, 3, crash, 0.75, ("tiny",), 2),),
        ("restarting",),
    )
    async with in_process(engine, QUIET) as http:
        response = await http.get("/health")
    worker = {
        "state": "backing_off",
        "since": 1_700_000_001.0,
        "pid": None,
        "restarts": 3,
        "kv_share": 0.75,
        "models": ["tiny"],
        "active_streams": 2,
        "last_crash": {
            "at": 1_700_000_000.5,
            "cause": "killed",
            "exit_code": None,
            "signal": "SIGKILL",
            "finding": "out of memory",
            "advice": "use a smaller model",
            "stderr_tail": "last words",
        },
    }
    assert response.json() == {
        "status": "degraded",
        "reasons": ["restarting"],
        "uptime_s": 60.0,
        "active_streams": 2,
        "loaded_models": ["tiny"],
        "draining": False,
        "worker": worker,
        "workers": [worker],
    }


async def test_a_health_check_that_fails_is_not_healthy() -> None:
    engine = ScriptedEngine()
    engine.report = RuntimeError("broken")
    async with in_process(engine, QUIET) as http:
        response = await http.get("/health/live")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
