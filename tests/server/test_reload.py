"""Another configuration while it serves, as the server sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from mlx_serving.config.changes import Plan
from mlx_serving.config.schema import Config
from mlx_serving.errors import EngineError, InvalidConfig, ModelLoadError
from mlx_serving.server.app import ServerApp, create_app
from mlx_serving.server.reload import Reloader
from mlx_serving.server.settings import ServerSettings, settings_of

from .conftest import LogLines
from .scripted_engine import ScriptedEngine

RELOAD = "/admin/reload"
ADMIN = {"authorization": "Bearer admin"}
PROBLEMS: list[dict[str, object]] = [{"path": "server.prot", "message": "unknown key", "suggestion": "server.port?"}]


class Engine:
    """Takes every plan but those of `refused`."""

    def __init__(self) -> None:
        self.adopted: list[Plan] = []
        self.refused = False
        self.failed: dict[str, EngineError] = {}

    def adopt(self, plan: Plan) -> None:
        if self.refused:
            raise InvalidConfig("there is no such BLAS library")
        self.adopted.append(plan)

    async def carry_out(self, plan: Plan) -> Mapping[str, EngineError]:
        return self.failed


class Served:
    """An application whose configuration is `wanted`, once it is read again."""

    def __init__(self, **sections: Any) -> None:
        first = configured(**sections)
        self.wanted: Config | InvalidConfig = first
        self.engine = Engine()
        self.app: ServerApp = create_app(ScriptedEngine(), settings_of(first))
        self.reloader = Reloader(
            first, self._read, self.engine, lambda config: self.app.reconfigure(settings_of(config))
        )
        self.app.reload_with(self.reloader)

    def _read(self) -> Config:
        if isinstance(self.wanted, InvalidConfig):
            raise self.wanted
        return self.wanted

    def http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app), base_url="http://server")


def configured(**sections: Any) -> Config:
    server = {"admin_key": "admin", "access_log": False, **sections.pop("server", {})}
    return Config.model_validate({"server": server, **sections})


async def test_keys_limits_and_times_hold_from_the_next_request_on(log_lines: LogLines) -> None:
    served = Served(server={"api_key": "old", "max_body_bytes": 100_000})
    served.wanted = configured(server={"api_key": "new", "max_body_bytes": 1024, "drain_timeout_s": 3})
    async with served.http() as http:
        reloaded = await http.post(RELOAD, headers=ADMIN)
        assert reloaded.status_code == 200
        assert reloaded.json() == {
            "changed": ["server.api_key", "server.max_body_bytes", "server.drain_timeout_s"],
            "kept": [],
            "added": [],
            "removed": [],
            "replaced": [],
            "failed": [],
            "worker_restarted": False,
        }
        assert (await http.get("/v1/models", headers={"authorization": "Bearer old"})).status_code == 401
        assert (await http.get("/v1/models", headers={"authorization": "Bearer new"})).status_code == 200
        large = {"prompt": "x" * 2000}
        refused = await http.post("/v1/completions", json=large, headers={"authorization": "Bearer new"})
        assert refused.status_code == 413
    assert served.app.settings.drain_timeout_s == 3
    (line,) = [line for line in log_lines if line["event"] == "configuration reloaded"]
    assert (line["changed"], line["worker"]) == (reloaded.json()["changed"], "kept")


async def test_the_admin_key_can_change_and_the_access_log_too(log_lines: LogLines) -> None:
    served = Served()
    served.wanted = configured(server={"admin_key": "other", "access_log": True})
    async with served.http() as http:
        assert (await http.post(RELOAD, headers=ADMIN)).status_code == 200
        assert (await http.post(RELOAD, headers=ADMIN)).status_code == 401
    assert [line["status"] for line in log_lines if line["event"] == "request"] == [200, 401]


async def test_what_is_not_valid_is_told_in_full_and_changes_nothing(log_lines: LogLines) -> None:
    served = Served(server={"api_key": "k"})
    before = served.app.settings
    served.wanted = InvalidConfig("1 problem in the configuration", issues=PROBLEMS)
    async with served.http() as http:
        refused = await http.post(RELOAD, headers=ADMIN)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_config"
    assert refused.json()["error"]["details"]["issues"] == PROBLEMS
    assert served.app.settings is before
    assert served.engine.adopted == []
    (line,) = [line for line in log_lines if line["event"] == "configuration refused"]
    assert line["problems"] == PROBLEMS


async def test_what_the_engine_refuses_changes_nothing_either() -> None:
    served = Served()
    before = served.app.settings
    served.engine.refused = True
    served.wanted = configured(server={"api_key": "k"})
    with pytest.raises(InvalidConfig, match="BLAS"):
        await served.reloader.reload()
    assert served.app.settings is before
    assert served.reloader.config.server.api_key is None


async def test_what_needs_a_new_start_is_told_each_time(log_lines: LogLines) -> None:
    served = Served(server={"port": 1000})
    served.wanted = configured(server={"port": 2000})
    async with served.http() as http:
        for _ in range(2):
            reloaded = await http.post(RELOAD, headers=ADMIN)
            assert reloaded.json()["kept"] == [{"setting": "server.port", "value": 1000, "wanted": 2000}]
    warnings = [line for line in log_lines if line["event"] == "a setting needs a new start"]
    assert [(line["setting"], line["value"], line["wanted"]) for line in warnings] == [("server.port", 1000, 2000)] * 2


async def test_a_model_that_could_not_be_replaced_is_told_and_tried_again(log_lines: LogLines) -> None:
    models = [{"model": "org/a", "name": "a"}]
    served = Served(models={"served": models})
    served.engine.failed = {"a": ModelLoadError("no such weights")}
    served.wanted = configured(models={"served": [{**models[0], "revision": "2"}]})
    async with served.http() as http:
        reloaded = (await http.post(RELOAD, headers=ADMIN)).json()
        assert (reloaded["replaced"], reloaded["failed"]) == ([], [{"model": "a", "error": "no such weights"}])
        served.engine.failed = {}
        assert (await http.post(RELOAD, headers=ADMIN)).json()["replaced"] == ["a"]
        assert (await http.post(RELOAD, headers=ADMIN)).json()["replaced"] == []
    assert [line["model"] for line in log_lines if line["event"] == "model not replaced"] == ["a"]


async def test_a_server_that_was_started_by_a_program_has_nothing_to_read() -> None:
    app = create_app(ScriptedEngine(), ServerSettings(admin_key="admin", access_log=False))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://server") as http:
        refused = await http.post(RELOAD, headers=ADMIN)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
