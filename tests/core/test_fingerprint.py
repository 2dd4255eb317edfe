from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.fingerprint import fingerprint, is_deterministic
from mlx_serving.core.generation import (
    ChatPrompt,
    EmbeddingInputs,
    GenerationRequest,
    SamplingParams,
    Served,
    Structure,
    TextPrompt,
    TokenPrompt,
    ToolChoice,
)
from mlx_serving.core.images.image import Image

ASKED = GenerationRequest("r", "m", TextPrompt("Hi"), SamplingParams(temperature=0.0))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(temperature=0), True),
        (SamplingParams(temperature=0.0), True),
        (SamplingParams(seed=0), True),
        (SamplingParams(seed=7, temperature=1.5), True),
        (SamplingParams(temperature=0.1), False),
        (SamplingParams(), False),  # the model may say anything
    ],
)
def test_greedy_and_seeded_requests_leave_nothing_to_chance(sampling: SamplingParams, expected: bool) -> None:
    assert is_deterministic(replace(ASKED, sampling=sampling)) is expected


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": "other"},
        {"priority": "low"},
        {"caller": "somebody"},
        {"timeout_s": 3.0},
        {"fork_of": "parent"},
        {"served": Served()},
    ],
)
def test_who_asks_makes_no_difference(change: dict[str, Any]) -> None:
    assert fingerprint(replace(ASKED, **change)) == fingerprint(ASKED)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"prompt": TextPrompt("Ho")},
        {"prompt": TokenPrompt((1,))},
        {"sampling": SamplingParams(temperature=0.0, max_tokens=1)},
        {"sampling": SamplingParams(temperature=0.0, logit_bias={1: 2.0})},
        {"structure": Structure("json_object")},
        {"parse_output": True},
        {"tool_choice": ToolChoice("required")},
        {"reasoning_budget": 3},
    ],
)
def test_everything_else_does(change: dict[str, Any]) -> None:
    assert fingerprint(replace(ASKED, **change)) != fingerprint(ASKED)


def test_every_field_of_a_request_was_thought_about() -> None:
    told = {"model", "prompt", "sampling", "structure", "parse_output", "tool_choice", "reasoning_budget"}
    untold = {"request_id", "priority", "caller", "timeout_s", "fork_of", "delivered", "served"}
    assert {field.name for field in fields(GenerationRequest)} - untold >= told


def test_who_answers_does_as_well() -> None:
    assert (
        len({fingerprint(ASKED), fingerprint(ASKED, "a"), fingerprint(ASKED, "b"), fingerprint(ASKED, "a", "b")}) == 4
    )


def test_the_order_of_members_counts() -> None:
    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert fingerprint(_chat(one)) != fingerprint(_chat(other))


def test_pictures_count_by_their_pixels_and_not_by_their_files() -> None:
    def named(*images: Image) -> str | None:
        prompt = ChatPrompt(({"role": "user", "content": [{"type": "image"}]},), images=images)
        return fingerprint(replace(ASKED, prompt=prompt))

    one = Image(b"a PNG", "1" * 64, 8, 8)
    assert named(one) == named(replace(one, data=b"a BMP")) is not None
    others = (named(), named(replace(one, digest="2" * 64)), named(one, one), named(replace(one, detail="low")))
    assert len({named(one), *others}) == 5


@given(JSON, JSON)
def test_different_prompts_have_different_names(one: object, other: object) -> None:
    same = fingerprint(_chat({"content": one})) == fingerprint(_chat({"content": other}))
    assert same == (repr(one) == repr(other))  # 1, 1.0 and True are equal, and not the same


def test_what_goes_on_behind_something_has_no_name() -> None:
    assert fingerprint(replace(ASKED, delivered=(1,))) is None


def _deep() -> list[object]:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize("odd", [object(), b"bytes", {1, 2}, _deep(), SamplingParams])
def test_what_json_cannot_say_has_none_either(odd: object) -> None:
    assert fingerprint(_chat({"content": odd})) is None


def _chat(message: Mapping[str, object]) -> GenerationRequest:
    return replace(ASKED, prompt=ChatPrompt((message,)))


def test_vectors_have_no_name() -> None:
    assert fingerprint(GenerationRequest("r", "m", EmbeddingInputs(("a",)))) is None
