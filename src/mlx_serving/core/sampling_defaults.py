"""What a sequence is sampled with in the end, and what of it is refused.

A parameter comes from the request, else from the model's generation_config.json, else from `SamplingDefaults`.
A model that says `do_sample: false` means temperature 0. Values of a wrong type or outside their limits in the model's
file are passed over: its author is not here to mend them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from mlx_serving.core.generation import SamplingParams
from mlx_serving.errors import InvalidRequest

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 100
MAX_LOGIT_BIASES = 1024
MAX_BANNED_TOKEN_IDS = 1024
MAX_ALLOWED_TOKEN_IDS = 1 << 18
MAX_BAD_WORDS = 100
MAX_BAD_WORD_CHARS = 256
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**64 - 1

_Issue: TypeAlias = dict[str, object]
_ISSUES_IN_MESSAGE = 3


@dataclass(frozen=True, slots=True)
class _Range:
    """Numbers from `low` to `high`; `open_low` excludes `low` itself. Bools, NaN and infinities are never inside."""

    low: float
    high: float = sys.float_info.max
    whole: bool = False
    open_low: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"greater than {self.low}" if self.open_low else f"of at least {self.low}"
        return f"{kind} {low}" if self.high == sys.float_info.max else f"{kind} {low} and at most {self.high}"


_RANGES: Mapping[str, _Range] = {
    "max_tokens": _Range(1, whole=True),
    "temperature": _Range(0, 2),
    "top_p": _Range(0, 1, open_low=True),
    "top_k": _Range(0, whole=True),
    "min_p": _Range(0, 1),
    "typical_p": _Range(0, 1, open_low=True),
    "xtc_probability": _Range(0, 1),
    "xtc_threshold": _Range(0, 0.5),  # above a half there is no second token to prefer
    "repetition_penalty": _Range(0, open_low=True),
    "repetition_context_size": _Range(0, whole=True),
    "presence_penalty": _Range(-2, 2),
    "frequency_penalty": _Range(-2, 2),
    "seed": _Range(0, MAX_SEED, whole=True),
    "min_tokens": _Range(0, whole=True),
    "logprobs": _Range(0, MAX_TOP_LOGPROBS, whole=True),
}
_TOKEN_ID = _Range(0, whole=True)
_BIAS = _Range(-100, 100)


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds where neither the request nor the model says anything. Limits are those of a request.

    `repetition_context_size` and the XTC threshold are mlx-lm's.
    """

    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value: float = getattr(self, name)
            if value not in _RANGES[name]:
                raise ValueError(f"{name} must be {_RANGES[name]}, got {value}")


@dataclass(frozen=True, slots=True)
class ResolvedSampling:
    """`SamplingParams` with every question answered. None is left to `seed`: draw one, to `allowed_token_ids`: all
    are, and to `logprobs`: none are asked for."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    banned_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


def resolve(
    params: SamplingParams, model_defaults: Mapping[str, object], defaults: SamplingDefaults
) -> ResolvedSampling:
    """Fill in what the request left open. `model_defaults` is the content of generation_config.json, {} without one.

    `max_tokens` is never the model's to say: the lengths in its file are the habits of another runtime. Its default
    gives way to a longer `min_tokens`.
    """
    greedy = model_defaults.get("do_sample") is False
    model_temperature = 0.0 if greedy else _number(model_defaults, "temperature")
    return ResolvedSampling(
        max_tokens=_first(params.max_tokens, max(defaults.max_tokens, params.min_tokens)),
        temperature=_first(params.temperature, model_temperature, defaults.temperature),
        top_p=_first(params.top_p, _number(model_defaults, "top_p"), defaults.top_p),
        top_k=_first(params.top_k, _whole_number(model_defaults, "top_k"), defaults.top_k),
        min_p=_first(params.min_p, _number(model_defaults, "min_p"), defaults.min_p),
        typical_p=_first(params.typical_p, _number(model_defaults, "typical_p"), defaults.typical_p),
        xtc_probability=_first(params.xtc_probability, defaults.xtc_probability),
        xtc_threshold=_first(params.xtc_threshold, defaults.xtc_threshold),
        repetition_penalty=_first(
            params.repetition_penalty, _number(model_defaults, "repetition_penalty"), defaults.repetition_penalty
        ),
        repetition_context_size=_first(params.repetition_context_size, defaults.repetition_context_size),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        banned_token_ids=params.banned_token_ids,
        allowed_token_ids=params.allowed_token_ids,
        bad_words=params.bad_words,
        seed=params.seed,
        min_tokens=params.min_tokens,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )


def validate(params: SamplingParams) -> None:
    """Raise one `InvalidRequest` for everything that is out of its limits; `details.issues` lists all when several."""
    issues = [
        *_number_issues(params),
        *_string_issues("stop", params.stop, MAX_STOP_STRINGS, MAX_STOP_CHARS),
        *_id_issues("stop_token_ids", params.stop_token_ids, MAX_STOP_TOKEN_IDS),
        *_bias_issues(params),
        *_string_issues("bad_words", params.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARS),
        *_id_issues("banned_token_ids", params.banned_token_ids, MAX_BANNED_TOKEN_IDS),
        *_allowed_issues(params),
    ]
    if not issues:
        return
    first = issues[0]
    if len(issues) == 1:
        raise InvalidRequest(
            str(first["message"]), field=str(first["field"]), limit=first["limit"], given=first["given"]
        )
    message = "; ".join(str(issue["message"]) for issue in issues[:_ISSUES_IN_MESSAGE])
    if len(issues) > _ISSUES_IN_MESSAGE:
        message += f"; and {len(issues) - _ISSUES_IN_MESSAGE} more"
    raise InvalidRequest(message, field=str(first["field"]), issues=issues)


def _number_issues(params: SamplingParams) -> Iterator[_Issue]:
    for name, allowed in _RANGES.items():
        value: float | None = getattr(params, name)
        if value is not None and value not in allowed:
            yield _out_of_range(name, allowed, value)
    if params.max_tokens is not None and 0 < params.max_tokens < params.min_tokens:
        limit = f"at most max_tokens ({params.max_tokens})"
        yield _issue("min_tokens", f"must be {limit}", limit, params.min_tokens)


def _string_issues(name: str, strings: Sequence[str], most: int, chars: int) -> Iterator[_Issue]:
    if len(strings) > most:
        yield _too_many(name, "strings", most, len(strings))
        return
    for index, string in enumerate(strings):
        if not 1 <= len(string) <= chars:
            limit = f"1 to {chars} characters"
            yield _issue(f"{name}[{index}]", f"must have {limit}", limit, f"{len(string)} characters")


def _id_issues(name: str, token_ids: Sequence[int], most: int) -> Iterator[_Issue]:
    if len(token_ids) > most:
        yield _too_many(name, "ids", most, len(token_ids))
        return
    for index, token_id in enumerate(token_ids):
        if token_id not in _TOKEN_ID:
            yield _out_of_range(f"{name}[{index}]", _TOKEN_ID, token_id)


def _allowed_issues(params: SamplingParams) -> Iterator[_Issue]:
    if params.allowed_token_ids == ():
        yield _issue("allowed_token_ids", "must not be empty", "1 id or more", "none")
    else:
        yield from _id_issues("allowed_token_ids", params.allowed_token_ids or (), MAX_ALLOWED_TOKEN_IDS)


def _bias_issues(params: SamplingParams) -> Iterator[_Issue]:
    if len(params.logit_bias) > MAX_LOGIT_BIASES:
        yield _too_many("logit_bias", "entries", MAX_LOGIT_BIASES, len(params.logit_bias))
        return
    for token_id, bias in params.logit_bias.items():
        if token_id not in _TOKEN_ID:
            yield _issue(f"logit_bias[{token_id}]", "must be keyed by a token id of at least 0", ">= 0", token_id)
        elif bias not in _BIAS:
            yield _out_of_range(f"logit_bias[{token_id}]", _BIAS, bias)


def _out_of_range(field_path: str, allowed: _Range, value: float) -> _Issue:
    # JSON has no NaN and no infinity: they are reported by name.
    given = str(value) if isinstance(value, float) and not math.isfinite(value) else value
    return _issue(field_path, f"must be {allowed}", str(allowed), given)


def _too_many(field_path: str, things: str, limit: int, count: int) -> _Issue:
    return _issue(field_path, f"must have at most {limit} {things}", limit, count)


def _issue(field_path: str, rule: str, limit: object, given: object) -> _Issue:
    return {"field": field_path, "message": f"{field_path} {rule}, got {given}", "limit": limit, "given": given}


_N = TypeVar("_N", int, float)


def _first(*candidates: _N | None) -> _N:
    return next(candidate for candidate in candidates if candidate is not None)


def _number(model_defaults: Mapping[str, object], name: str) -> float | None:
    value = model_defaults.get(name)
    return float(value) if isinstance(value, int | float) and value in _RANGES[name] else None


def _whole_number(model_defaults: Mapping[str, object], name: str) -> int | None:
    value = model_defaults.get(name)
    return value if isinstance(value, int) and value in _RANGES[name] else None
