"""How tokens are chosen and when to stop: the fields of `core.generation.SamplingParams`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mlx_serving.core import sampling_defaults
from mlx_serving.core.generation import SamplingParams
from mlx_serving.errors import InvalidRequest
from mlx_serving.facade.option_base import Options, either

_NAMES = {each.name: each.name for each in dataclasses.fields(SamplingParams)}
_NAMES["stop_sequences"] = _NAMES.pop("stop")
"""What `SamplingParams` calls each field."""
_TOKEN_ID = re.compile(r"-?[0-9]{1,19}")


def _as_tuple(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _as_strings(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


def _with_ids_as_keys(value: object) -> object:
    """JSON writes token ids as text where they are keys."""
    if not isinstance(value, Mapping):
        return value
    items = cast("Mapping[object, object]", value).items()
    return {int(key) if isinstance(key, str) and _TOKEN_ID.fullmatch(key) else key: each for key, each in items}


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
StopStrings = Annotated[tuple[str, ...], BeforeValidator(_as_strings)]
Ids = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]


class SamplingFields(Options):
    max_tokens: int | None = Field(default=None, validation_alias=either("max_tokens"))
    temperature: float | None = None
    top_p: float | None = Field(default=None, validation_alias=either("top_p"))
    top_k: int | None = Field(default=None, validation_alias=either("top_k"))
    min_p: float | None = Field(default=None, validation_alias=either("min_p"))
    typical_p: float | None = Field(default=None, validation_alias=either("typical_p"))
    xtc_probability: float | None = Field(default=None, validation_alias=either("xtc_probability"))
    xtc_threshold: float | None = Field(default=None, validation_alias=either("xtc_threshold"))
    repetition_penalty: float | None = Field(default=None, validation_alias=either("repetition_penalty"))
    repetition_context_size: int | None = Field(default=None, validation_alias=either("repetition_context_size"))
    presence_penalty: float = Field(default=0.0, validation_alias=either("presence_penalty"))
    frequency_penalty: float = Field(default=0.0, validation_alias=either("frequency_penalty"))
    logit_bias: Annotated[dict[int, float], BeforeValidator(_with_ids_as_keys)] = Field(
        default_factory=dict, validation_alias=either("logit_bias")
    )
    banned_token_ids: Ids = Field(default=(), validation_alias=either("banned_token_ids"))
    allowed_token_ids: Ids | None = Field(default=None, validation_alias=either("allowed_token_ids"))
    bad_words: Strings = Field(default=(), validation_alias=either("bad_words"))
    seed: int | None = None
    min_tokens: int = Field(default=0, validation_alias=either("min_tokens"))
    stop_sequences: StopStrings = Field(default=(), validation_alias=either("stop_sequences", "stop"))
    stop_token_ids: Ids = Field(default=(), validation_alias=either("stop_token_ids"))
    ignore_eos: bool = Field(default=False, validation_alias=either("ignore_eos"))
    logprobs: int | None = None

    @field_validator(*_NAMES)
    @classmethod
    def _within_limits(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None  # it validates fields
        name = _NAMES[info.field_name]
        try:
            sampling_defaults.validate(SamplingParams(**cast("dict[str, Any]", {name: value})))
        except InvalidRequest as error:
            rule = error.message.removeprefix(name)
            limit = error.details.get("limit")
            raise PydanticCustomError("limit", "{rule}", {"rule": rule.lstrip(), "limit": limit}) from None
        return value

    def to_sampling(self) -> SamplingParams:
        return SamplingParams(**{name: getattr(self, field) for field, name in _NAMES.items()})
