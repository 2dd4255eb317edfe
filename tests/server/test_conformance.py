"""Requests that schemathesis makes up from our own description, valid and not: no answer is a 5xx, or another one than
the description promises."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks

from mlx_serving.server.app import create_app
from mlx_serving.server.settings import ServerSettings

from .scripted_engine import ScriptedEngine

KEY = "sesame"
APP = create_app(ScriptedEngine(), ServerSettings(api_key=KEY, admin_key=KEY, access_log=False))
SCHEMA: Any = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.auth()
class Keys:
    def get(self, _case: Any, _context: object) -> str:
        return KEY

    def set(self, case: Any, data: str, _context: object) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


@SCHEMA.parametrize()
@settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_answers_are_as_described(case: Any) -> None:
    # Not all that is refused can be said in a schema: the names of models, numbers that depend on each other.
    accepts: Any = checks
    case.call_and_validate(excluded_checks=[accepts.positive_data_acceptance])
