"""How tokens are chosen and when to stop, in OpenAI's words and vLLM's. The limits are `core.sampling_defaults`'."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, Tag
from pydantic_core import PydanticCustomError

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.sampling_defaults import MAX_SEED
from mlx_serving.server.request_fields import Body, string_or

_TOKEN_ID = re.compile(r"-?[0-9]{1,19}")


def _token_ids_as_keys(biases: dict[str, float]) -> dict[str, float]:
    wrong = [key for key in biases if not _TOKEN_ID.fullmatch(key)]
    if wrong:
        raise PydanticCustomError(
            "token_id_keys",
            "must be keyed by token ids, got {keys}",
            {"keys": ", ".join(repr(key[:20]) for key in wrong[:5])},
        )
    return biases


Stop: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[str], Tag("<list>")],
    string_or("strings"),
]
_TopK: TypeAlias = Annotated[int | None, AfterValidator(lambda top_k: 0 if top_k == -1 else top_k)]
"""vLLM writes -1 for none."""


def _seed(given: int | None) -> int | None:
    if given == -1:
        return None
    return given if given is None or given >= 0 else given + 2**64


_Seed: TypeAlias = Annotated[int | None, Field(ge=-(2**63), le=MAX_SEED), AfterValidator(_seed)]
"""vLLM and llama.cpp write -1 for none. OpenAI's are signed, of 64 bits."""


class SamplingFields(Body):
    """How tokens are chosen and when to stop. null is the model's own default."""

    max_tokens: int | None = Field(default=None, description="Tokens to generate at most.")
    temperature: float | None = Field(default=None, description="0 always takes the likeliest token; at most 2.")
    top_p: float | None = Field(default=None, description="Sample from the likeliest tokens of this probability.")
    top_k: _TopK = Field(default=None, description="Sample from this many likeliest tokens; 0 and -1 are off.")
    min_p: float | None = Field(default=None, description="Drop tokens below this fraction of the likeliest one.")
    typical_p: float | None = Field(
        default=None, description="Sample from the tokens of this probability whose surprise is nearest to the mean."
    )
    xtc_probability: float | None = Field(default=None, description="How often XTC removes the likeliest tokens.")
    xtc_threshold: float | None = Field(
        default=None, description="Of the tokens above this probability, XTC keeps the least likely one; at most 0.5."
    )
    repetition_penalty: float | None = Field(default=None, description="Above 1, recent tokens become less likely.")
    repetition_context_size: int | None = Field(
        default=None, description="Recent tokens of prompt and answer, for repetition_penalty; 0 is all."
    )
    presence_penalty: float | None = Field(
        default=None, description="Subtracted from tokens that the answer has; -2 to 2."
    )
    frequency_penalty: float | None = Field(
        default=None, description="Subtracted for every time that the answer has a token; -2 to 2."
    )
    logit_bias: Annotated[dict[str, float], AfterValidator(_token_ids_as_keys)] | None = Field(
        default=None, description="Added to the logits of token ids; -100 to 100."
    )
    banned_token_ids: list[int] | None = Field(default=None, description="Token ids that never come.")
    allowed_token_ids: list[int] | None = Field(default=None, description="The only token ids that may come.")
    bad_words: list[str] | None = Field(
        default=None,
        description="Banned as the tokenizer writes them, alone and after a space; other spellings are not.",
    )
    seed: _Seed = Field(default=None, description="The same seed and request give the same text; -1 is none.")
    min_tokens: int | None = Field(default=None, description="Until then, nothing ends the text.")
    stop: Stop | None = Field(default=None, description="At most 16 strings that end the text and are no part of it.")
    stop_token_ids: list[int] | None = Field(default=None, description="Token ids that end the text.")
    ignore_eos: bool | None = Field(default=None, description="Go on after the model's own end of the turn.")


def sampling_of(fields: SamplingFields, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    """`max_tokens` and `logprobs` have other names, or other forms, in some requests."""
    stop = () if fields.stop is None else fields.stop
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        min_p=fields.min_p,
        typical_p=fields.typical_p,
        xtc_probability=fields.xtc_probability,
        xtc_threshold=fields.xtc_threshold,
        repetition_penalty=fields.repetition_penalty,
        repetition_context_size=fields.repetition_context_size,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias={int(token_id): bias for token_id, bias in (fields.logit_bias or {}).items()},
        banned_token_ids=tuple(fields.banned_token_ids or ()),
        allowed_token_ids=None if fields.allowed_token_ids is None else tuple(fields.allowed_token_ids),
        bad_words=tuple(fields.bad_words or ()),
        seed=fields.seed,
        min_tokens=fields.min_tokens or 0,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=fields.ignore_eos or False,
        logprobs=logprobs,
    )
