"""What the sections of the configuration are made of, and what requests that load models have in common with them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from mlx_serving.core.idle_time import idle_time
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest


class Section(BaseModel):
    """Strict about unknown keys, and silent about what was given: it may be a secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


NO_SPACES = r"^[^\s\x00-\x1f\x7f]+$"

Reference = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
PublicName = Annotated[str, Field(min_length=1, max_length=256, pattern=NO_SPACES)]


def _idle_time(given: object) -> float:
    try:
        return idle_time(given)
    except InvalidRequest as error:
        reason = error.message.removeprefix("keep_alive ")
        raise PydanticCustomError("keep_alive", "{reason}", {"reason": reason}) from None


AS_IDLE_TIME = BeforeValidator(_idle_time)
IdleTime = Annotated[float, Field(ge=-1), AS_IDLE_TIME]
"""Seconds, negative for ever; given as a number or as a text: see `core.idle_time`."""


def known_quantization(text: str | None) -> str | None:
    """Validates the name of a quantization; `none` is None."""
    try:
        return WeightOptions(text).quantization
    except InvalidRequest as error:
        reason = error.message.removeprefix("quantization").lstrip(": ")
        raise PydanticCustomError("quantization", "{reason}", {"reason": reason}) from None
