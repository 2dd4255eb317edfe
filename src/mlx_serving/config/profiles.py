"""What holds under a model's name where a request is silent: see `core.model_profile`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.core.generation import MAX_DRAFT_TOKENS, Priority, Speculation, SpeculationMethod
from mlx_serving.core.model_profile import ModelProfile

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


class Profile(BaseModel):
    """What holds under a name where a request is silent, and what no request under it may exceed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    max_tokens: int | None = Field(default=None, ge=1, description="Tokens to generate at most.")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Randomness; 0 always takes the likeliest token."
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Sample from the likeliest tokens of this total probability; 1 is off."
    )
    top_k: int | None = Field(default=None, ge=0, description="Sample from this many likeliest tokens; 0 is off.")
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drop tokens that are less likely than this fraction of the likeliest one; 0 is off.",
    )
    typical_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample from the tokens of this total probability whose surprise is nearest to the mean; 1 is off.",
    )
    xtc_probability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How often, of the tokens above `xtc_threshold`, all but the least likely are removed; 0 is off.",
    )
    xtc_threshold: float | None = Field(
        default=None, ge=0, le=0.5, description="Probability above which XTC removes tokens."
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, description="Above 1, recent tokens become less likely; 1 is off."
    )
    repetition_context_size: int | None = Field(
        default=None,
        ge=0,
        description="Recent tokens of prompt and answer that `repetition_penalty` looks at; 0 is all of them.",
    )
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
        pattern=r"^[^\s\x00-\x1f\x7f]+$",
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
        limit = self.max_tokens_limit
        if limit is not None and self.max_tokens is not None and self.max_tokens > limit:
            raise PydanticCustomError(
                "max_tokens",
                "must be at most max_tokens_limit ({limit}), got {given}",
                {"limit": limit, "given": self.max_tokens, "at": ["max_tokens"]},
            )
        return self

    @property
    def core(self) -> ModelProfile:
        """As `core` takes it."""
        return ModelProfile(**self.model_dump())
