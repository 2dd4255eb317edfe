"""What holds where a request leaves open how text is generated: the section `generation`, and the fields that it has in
common with the profiles of models."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.fields import Section
from mlx_serving.core.sampling_defaults import SamplingDefaults

_SAMPLING = SamplingDefaults()

MAX_TOKENS = Field(ge=1, description="Tokens to generate at most.")
TEMPERATURE = Field(ge=0, le=2, description="Randomness; 0 always takes the likeliest token.")
TOP_P = Field(gt=0, le=1, description="Sample from the likeliest tokens of this total probability; 1 is off.")
TOP_K = Field(ge=0, description="Sample from this many likeliest tokens; 0 is off.")
MIN_P = Field(
    ge=0, le=1, description="Drop tokens that are less likely than this fraction of the likeliest one; 0 is off."
)
TYPICAL_P = Field(
    gt=0,
    le=1,
    description="Sample from the tokens of this total probability whose surprise is nearest to the mean; 1 is off.",
)
XTC_PROBABILITY = Field(
    ge=0,
    le=1,
    description="How often, of the tokens above `xtc_threshold`, all but the least likely are removed; 0 is off.",
)
XTC_THRESHOLD = Field(ge=0, le=0.5, description="Probability above which XTC removes tokens.")
REPETITION_PENALTY = Field(gt=0, description="Above 1, recent tokens become less likely; 1 is off.")
REPETITION_CONTEXT_SIZE = Field(
    ge=0, description="Recent tokens of prompt and answer that `repetition_penalty` looks at; 0 is all of them."
)


def require_within(limit: int | None, max_tokens: int | None) -> None:
    """For the default of a section that has a `max_tokens_limit`."""
    if limit is not None and max_tokens is not None and max_tokens > limit:
        raise PydanticCustomError(
            "max_tokens",
            "must be at most max_tokens_limit ({limit}), got {given}",
            {"limit": limit, "given": max_tokens, "at": ["max_tokens"]},
        )


class GenerationConfig(Section):
    """What holds where a request, and its model, leave something open; and what no request may exceed."""

    max_tokens: Annotated[int, MAX_TOKENS] = _SAMPLING.max_tokens
    temperature: Annotated[float, TEMPERATURE] = _SAMPLING.temperature
    top_p: Annotated[float, TOP_P] = _SAMPLING.top_p
    top_k: Annotated[int, TOP_K] = _SAMPLING.top_k
    min_p: Annotated[float, MIN_P] = _SAMPLING.min_p
    typical_p: Annotated[float, TYPICAL_P] = _SAMPLING.typical_p
    xtc_probability: Annotated[float, XTC_PROBABILITY] = _SAMPLING.xtc_probability
    xtc_threshold: Annotated[float, XTC_THRESHOLD] = _SAMPLING.xtc_threshold
    repetition_penalty: Annotated[float, REPETITION_PENALTY] = _SAMPLING.repetition_penalty
    repetition_context_size: Annotated[int, REPETITION_CONTEXT_SIZE] = _SAMPLING.repetition_context_size
    max_tokens_limit: int | None = Field(
        default=None,
        ge=1,
        description="Largest `max_tokens` a request may ask for; null leaves it to the model's context.",
    )
    timeout_s: float | None = Field(
        default=300.0, gt=0, description="Time a request may take, in seconds; null is no limit."
    )

    @model_validator(mode="after")
    def _default_fits_limit(self) -> Self:
        require_within(self.max_tokens_limit, self.max_tokens if "max_tokens" in self.model_fields_set else None)
        return self

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """The defaults as `core` takes them; a default nobody chose gives way to `max_tokens_limit`."""
        return SamplingDefaults(
            max_tokens=min(self.max_tokens, self.max_tokens_limit or self.max_tokens),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            typical_p=self.typical_p,
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            repetition_penalty=self.repetition_penalty,
            repetition_context_size=self.repetition_context_size,
        )
