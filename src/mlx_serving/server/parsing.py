"""A JSON object as a request body of a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from pydantic import ValidationError

from mlx_serving.server.issues import from_validation_error, refuse, screen
from mlx_serving.server.request_fields import Body
from mlx_serving.server.unsupported import NeutralValues

_B = TypeVar("_B", bound=Body)


def parse_body(model: type[_B], body: Mapping[str, object], unsupported: NeutralValues | None = None) -> _B:
    """Raises `InvalidRequest` with every issue there is; parameters that are `unsupported` are refused by name."""
    given, issues = screen(body, model.model_fields, unsupported or {})
    parsed = None
    try:
        # Strictly in all that it is made of: records of the configuration are not strict by themselves.
        parsed = model.model_validate_json(msgspec.json.encode(given), strict=True)
    except ValidationError as error:
        issues += from_validation_error(error)
    refuse(issues)
    assert parsed is not None
    return parsed
