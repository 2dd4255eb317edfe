"""What holds under a model's name where a request is silent: see `core.model_profile`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Self, cast

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.fields import NO_SPACES, Section
from mlx_serving.config.generation import (
    MAX_TOKENS,
    MIN_P,
    REPETITION_CONTEXT_SIZE,
    REPETITION_PENALTY,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    TYPICAL_P,
    XTC_PROBABILITY,
    XTC_THRESHOLD,
    require_within,
)
from mlx_serving.core.generation import Priority
from mlx_serving.core.model_profile import ModelProfile
from mlx_serving.core.speculation.request import MAX_DRAFT_TOKENS, Speculation, SpeculationMethod

_MAX_TEXT_CHARS = 262_144


def _typed(given: object) -> object:
    """Values that come from a file or a variable are texts."""
    if not isinstance(given, Mapping):
        return given
    return {name: _json(value) for name, value in cast("Mapping[object, object]", given).items()}


def _json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


class Profile(Section):
    """What holds under a name where a request is silent, and what no request under it may exceed."""

    max_tokens: Annotated[int | None, MAX_TOKENS] = None
    temperature: Annotated[float | None, TEMPERATURE] = None
    top_p: Annotated[float | None, TOP_P] = None
    top_k: Annotated[int | None, TOP_K] = None
    min_p: Annotated[float | None, MIN_P] = None
    typical_p: Annotated[float | None, TYPICAL_P] = None
    xtc_probability: Annotated[float | None, XTC_PROBABILITY] = None
    xtc_threshold: Annotated[float | None, XTC_THRESHOLD] = None
    repetition_penalty: Annotated[float | None, REPETITION_PENALTY] = None
    repetition_context_size: Annotated[int | None, REPETITION_CONTEXT_SIZE] = None
    stop: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(), max_length=16, description="Strings that end the answer."
    )
    system_prompt: str | None = Field(
        default=None,
        min_length=1,
        max_length=_MAX_TEXT_CHARS,
        description="Opens conversations that have no system message.",
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        max_length=_MAX_TEXT_CHARS,
        description="Text of a Jinja template that renders conversations instead of the model's own.",
    )
    template_kwargs: Annotated[dict[str, object], BeforeValidator(_typed)] = Field(
        default={},
        description="What the template gets, such as `enable_thinking`, unless the request says. Texts that are JSON "
        "are read as such: `false` is a truth value.",
    )
    volatile_lines: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(),
        max_length=16,
        description="How lines of system messages begin that change with every request, such as `Current time:`; they "
        "are left out, so that the prefix cache finds what is behind them. Claude Code's `x-anthropic-billing-header:` "
        "always is.",
    )
    priority: Priority | None = Field(default=None, description="Priority of requests that ask for none.")
    max_tokens_limit: int | None = Field(default=None, ge=1, description="Largest `max_tokens` a request may ask for.")
    timeout_s: float | None = Field(default=None, gt=0, description="Time a request may take, in seconds.")

    speculation: SpeculationMethod | None = Field(
        default=None,
        description="Who drafts tokens for requests that leave it open: `ngram` the text so far, `draft` the "
        "`draft_model`, `off` nobody; `auto` is the draft model if there is one, else the text.",
    )
    draft_model: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        pattern=NO_SPACES,
        description="Served name of a smaller model with the same vocabulary that drafts for this one. Where it cannot "
        "be had, requests go without it.",
    )
    num_draft_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DRAFT_TOKENS,
        description="Tokens to draft at a time at most; null is as many as prove worth it.",
    )

    @model_validator(mode="after")
    def _draft_model_drafts(self) -> Self:
        problem = Speculation(self.speculation or "auto", self.draft_model).problem
        if problem is not None:
            field, rule = problem
            raise PydanticCustomError("draft_model", "{rule}", {"rule": rule, "at": [field]})
        return self

    @model_validator(mode="after")
    def _default_fits_limit(self) -> Self:
        require_within(self.max_tokens_limit, self.max_tokens)
        return self

    @property
    def core(self) -> ModelProfile:
        """As `core` takes it."""
        return ModelProfile(**self.model_dump())
