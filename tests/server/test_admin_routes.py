from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import WorkerGaveUp
from mlx_serving.server.settings import ServerSettings

from .conftest import in_process
from .scripted_engine import ScriptedEngine

LOAD, UNLOAD = "/admin/models/load", "/admin/models/unload"
RESTART, TELEMETRY = "/admin/workers/restart", "/admin/telemetry"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


async def test_a_model_is_loaded_and_described(admin: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    response = await admin.post(LOAD, json={"model": "org/new", "name": "new", "revision": "main"})
    assert response.status_code == 200
    assert response.json() == {
        "name": "new",
        "reference": "org/new",
        "created": 1_700_000_002,
        "state": "ready",
        "context_length": 512,
        "error": None,
        "default": False,
        "revision": None,
        "pinned": False,
        "keep_alive_s": None,
        "memory_bytes": None,
        "kv_bits": None,
        "in_use": 0,
        "progress": None,
        "profile": {},
        "alias_of": None,
    }
    assert engine.loads == [("org/new", "new", "main", False)]


async def test_name_and_revision_may_be_left_out(admin: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    assert (await admin.post(LOAD, json={"model": "org/new"})).status_code == 200
    assert engine.loads == [("org/new", None, None, False)]


async def test_a_name_that_is_in_use_is_taken_over_on_request(
    admin: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    assert (await admin.post(LOAD, json={"model": "org/new", "name": "tiny", "replace": True})).status_code == 200
    assert engine.loads == [("org/new", "tiny", None, True)]


async def test_a_form_of_the_weights_is_handed_on(admin: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    forms: list[dict[str, object]] = [
        {},
        {"quantization": "none"},
        {"quantization": "int4", "adapter": "a/b", "fuse_adapter": True},
        {"kv_bits": 8},
        {"kv_bits": 4, "kv_group_size": 32},
    ]
    for form in forms:
        assert (await admin.post(LOAD, json={"model": "org/new", **form})).status_code == 200
    assert engine.forms == [
        None,
        WeightOptions(),
        WeightOptions("4bit-g64", "a/b", fuse_adapter=True),
        WeightOptions(kv=KvForm(8)),
        WeightOptions(kv=KvForm(4, 32)),
    ]


async def test_how_it_stays_in_memory_is_handed_on(admin: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    given: tuple[dict[str, object], ...] = (
        {},
        {"pin": True, "keep_alive": "5m"},
        {"pin": False, "keep_alive": -1},
        {"keep_alive": 0},
    )
    for fields in given:
        assert (await admin.post(LOAD, json={"model": "org/new", **fields})).status_code == 200
    assert engine.stays == [(None, None), (True, 300.0), (False, -1.0), (None, 0.0)]


@pytest.mark.parametrize(
    ("form", "field", "told"),
    [
        ({"quantization": "7bit"}, "quantization", "the bits must be one of"),
        ({"quantization": "best"}, "quantization", "must be none, 4bit"),
        ({"fuse_adapter": True}, "fuse_adapter", "needs an adapter"),
        ({"adapter": ""}, "adapter", "must not be empty"),
        ({"kv_bits": 3}, "kv_bits", "kv_bits must be one of 4, 8; got 3"),
        ({"kv_bits": 8, "kv_group_size": 7}, "kv_group_size", "must be one of 32, 64, 128; got 7"),
        ({"kv_group_size": 64}, "kv_group_size", "needs kv_bits"),
        ({"keep_alive": "soon"}, "keep_alive", "a number of seconds or a text like 30s, 5m"),
        ({"pin": "maybe"}, "pin", "must be true or false"),
    ],
)
async def test_a_form_that_there_is_not_is_refused(
    admin: httpx2.AsyncClient, engine: ScriptedEngine, form: dict[str, object], field: str, told: str
) -> None:
    response = await admin.post(LOAD, json={"model": "org/new", **form})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert told in response.json()["error"]["message"]
    assert engine.forms == []


async def test_paths_must_lie_in_trusted_folders(engine: ScriptedEngine, tmp_path: Path) -> None:
    inside = tmp_path / "models" / "one"
    inside.mkdir(parents=True)
    settings = ServerSettings(admin_key="key", access_log=False, trusted_paths=(tmp_path / "models",))
    async with in_process(engine, settings) as http:
        http.headers["authorization"] = "Bearer key"
        for body in ({"model": "org/new"}, {"model": str(inside)}, {"model": "org/new", "adapter": str(inside)}):
            assert (await http.post(LOAD, json=body)).status_code == 200
        for body, field in (
            ({"model": "/etc/model"}, "model"),
            ({"model": f"{inside}/../../other"}, "model"),
            ({"model": "org/new", "adapter": "adapters"}, "adapter"),
        ):
            refused = await http.post(LOAD, json=body)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == field
            assert "outside of the folders in models.trusted_paths" in refused.json()["error"]["message"]
        assert (await http.post(LOAD, json={"model": "tiny"})).status_code == 200
    assert len(engine.loads) == 4


async def test_a_model_is_unloaded(admin: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    assert (await admin.post(UNLOAD, json={"model": "tiny"})).json() == {"name": "tiny", "unloaded": True}
    assert (await admin.post(UNLOAD, json={"model": "tiny", "force": True})).status_code == 200
    assert engine.unloads == [("tiny", False), ("tiny", True)]


async def test_the_worker_is_replaced(admin: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    response = await admin.post(RESTART)
    assert (response.status_code, response.json()) == (
        200,
        {"pid": 4711, "restarts": 0, "workers": [{"pid": 4711, "restarts": 0}]},
    )
    assert engine.restarts == 1
    engine.unstartable = WorkerGaveUp("It is not restarted for a while")
    assert (await admin.post(RESTART)).status_code == 503


async def test_telemetry_is_told_as_it_is(admin: httpx2.AsyncClient) -> None:
    response = await admin.get(TELEMETRY)
    assert response.status_code == 200
    assert response.json() == {
        "uptime_s": 12.5,
        "active_streams": 1,
        "worker_state": "ready",
        "worker_restarts": 2,
        "batch_queue": {
            "tokenize_batches": 1,
            "tokenize_requests": 3,
            "tokenize_fallbacks": 0,
            "tokenize_queue_size": 0,
            "check_draft_batches": 0,
            "check_draft_requests": 0,
            "check_draft_fallbacks": 0,
            "check_draft_queue_size": 0,
            "average_batch_size": 3.0,
        },
        "runtime": None,
        "workers": [{"state": "ready", "restarts": 2, "active_streams": 1, "runtime": None}],
    }


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_telemetry_is_for_the_operator_only(admin: httpx2.AsyncClient, key: str | None) -> None:
    del admin.headers["authorization"]
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    assert (await admin.get(TELEMETRY, headers=headers)).status_code == 401


async def test_without_an_admin_key_telemetry_is_off(engine: ScriptedEngine) -> None:
    async with in_process(engine, ServerSettings(access_log=False)) as http:
        assert (await http.get(TELEMETRY)).status_code == 403


@pytest.mark.parametrize(("path", "model"), [(LOAD, "org/missing"), (UNLOAD, "missing")])
async def test_what_the_engine_refuses_is_an_error_in_the_usual_shape(
    admin: httpx2.AsyncClient, path: str, model: str
) -> None:
    response = await admin.post(path, json={"model": model})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (LOAD, {}, "model is required"),
        (LOAD, {"model": ""}, "model must not be empty"),
        (
            LOAD,
            {"model": 5, "nam": "x"},
            "unknown parameter 'nam'; did you mean 'name'?; model must be a string, got 5",
        ),
        (UNLOAD, {"model": "tiny", "force": "yes"}, 'force must be true or false, got "yes"'),
    ],
)
async def test_a_wrong_body_is_refused(
    admin: httpx2.AsyncClient, engine: ScriptedEngine, path: str, body: dict[str, object], message: str
) -> None:
    response = await admin.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == message
    assert (engine.loads, engine.unloads) == ([], [])
