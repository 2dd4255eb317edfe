from __future__ import annotations

from dataclasses import replace

import pytest

from mlx_serving.core.generation import ChatPrompt, EmbeddingInputs, GenerationRequest, SamplingParams, TextPrompt
from mlx_serving.core.model_profile import NO_PROFILE, ModelProfile
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.errors import InvalidRequest

DEFAULT = 512


def chat(*roles: str) -> ChatPrompt:
    return ChatPrompt(tuple({"role": role, "content": role} for role in roles))


def request(sampling: SamplingParams = SamplingParams(), **fields: object) -> GenerationRequest:  # noqa: B008
    return GenerationRequest("r", "tiny", TextPrompt("Hello"), sampling, **fields)  # type: ignore[arg-type]


def sampled(profile: ModelProfile, **asked: object) -> SamplingParams:
    return profile.applied_to(request(SamplingParams(**asked)), DEFAULT).sampling  # type: ignore[arg-type]


def test_nothing_said_changes_nothing() -> None:
    asked = GenerationRequest("r", "tiny", chat("user"), SamplingParams(temperature=0.1, stop=("x",)), timeout_s=3)
    assert NO_PROFILE.applied_to(asked, DEFAULT) == asked
    assert NO_PROFILE.given() == {}


def test_defaults_hold_where_the_request_is_silent() -> None:
    profile = ModelProfile(temperature=0.2, top_k=0, repetition_penalty=1.1, stop=("END",), max_tokens=9)
    assert sampled(profile) == SamplingParams(
        temperature=0.2, top_k=0, repetition_penalty=1.1, stop=("END",), max_tokens=9
    )
    own = SamplingParams(temperature=0.0, top_k=5, repetition_penalty=1.0, stop=("x",), max_tokens=3)
    assert profile.applied_to(request(own), DEFAULT).sampling == own


def test_zero_is_something_that_is_said() -> None:
    assert ModelProfile(temperature=0.0, top_k=0).given() == {"temperature": 0.0, "top_k": 0}


@pytest.mark.parametrize(
    ("profile", "asked", "expected"),
    [
        (ModelProfile(max_tokens=9), {"min_tokens": 20}, 20),
        (ModelProfile(max_tokens_limit=100), {}, 100),
        (ModelProfile(max_tokens_limit=1000), {}, None),
        (ModelProfile(max_tokens_limit=1000), {"min_tokens": 800}, None),
        (ModelProfile(max_tokens_limit=600, max_tokens=600), {}, 600),
        (ModelProfile(max_tokens_limit=600, max_tokens=9), {"max_tokens": 600}, 600),
    ],
)
def test_a_default_gives_way_to_a_longer_minimum_and_to_the_limit(
    profile: ModelProfile, asked: dict[str, int], expected: int | None
) -> None:
    assert sampled(profile, **asked).max_tokens == expected


@pytest.mark.parametrize("name", ["max_tokens", "min_tokens"])
def test_more_than_the_limit_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{name} must be at most 100 for tiny, got 101$") as caught:
        sampled(ModelProfile(max_tokens_limit=100), **{name: 101})
    assert caught.value.details == {"field": name, "limit": 100, "given": 101}


def test_a_max_tokens_that_may_be_cut_is_cut_to_the_limit() -> None:
    asked = replace(request(SamplingParams(max_tokens=32000)), cut_to_fit=True)
    assert ModelProfile(max_tokens_limit=100).applied_to(asked, DEFAULT).sampling.max_tokens == 100
    least = replace(asked, sampling=SamplingParams(max_tokens=32000, min_tokens=101))
    with pytest.raises(InvalidRequest, match=r"^min_tokens must be at most 100"):
        ModelProfile(max_tokens_limit=100).applied_to(least, DEFAULT)


def test_a_system_prompt_opens_conversations_that_have_none() -> None:
    profile = ModelProfile(system_prompt="Be brief.")
    opened = profile.prompt(chat("user"))
    assert isinstance(opened, ChatPrompt)
    assert opened.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "user"})
    for own in ("system", "developer"):
        assert profile.prompt(chat(own, "user")) == chat(own, "user")
    assert profile.prompt(TextPrompt("Hello")) == TextPrompt("Hello")


def test_a_template_and_what_it_gets_give_way_to_those_of_the_request() -> None:
    profile = ModelProfile(chat_template="{{ 1 }}", template_kwargs={"a": 1, "b": 1})
    rendered = profile.prompt(ChatPrompt((), {"b": 2}))
    assert rendered == ChatPrompt((), {"a": 1, "b": 2}, (), "{{ 1 }}")
    assert profile.prompt(ChatPrompt((), chat_template="own")) == ChatPrompt((), {"a": 1, "b": 1}, (), "own")


def test_normal_is_the_priority_of_who_asks_for_none() -> None:
    profile = ModelProfile(priority="low")
    assert profile.applied_to(request(), DEFAULT).priority == "low"
    assert profile.applied_to(request(priority="high"), DEFAULT).priority == "high"
    assert NO_PROFILE.applied_to(request(priority="high"), DEFAULT).priority == "high"


def test_the_shorter_time_holds() -> None:
    profile = ModelProfile(timeout_s=5)
    assert [profile.applied_to(request(timeout_s=time), DEFAULT).timeout_s for time in (None, 3, 8)] == [5, 3, 5]


def test_one_profile_over_another_wins_where_they_differ() -> None:
    base = ModelProfile(temperature=0.2, top_p=0.9, template_kwargs={"a": 1, "b": 1}, stop=("x",))
    over = ModelProfile(temperature=0.0, template_kwargs={"b": 2})
    assert over.over(base) == ModelProfile(temperature=0.0, top_p=0.9, template_kwargs={"a": 1, "b": 2}, stop=("x",))
    assert NO_PROFILE.over(base) == base
    assert base.over(NO_PROFILE) == base


def drafting(profile: ModelProfile, **asked: object) -> Speculation:
    wanted = request(speculation=Speculation(**asked))  # type: ignore[arg-type]
    return profile.applied_to(wanted, DEFAULT).speculation


WITH_DRAFT = ModelProfile(draft_model="small", num_draft_tokens=4)


@pytest.mark.parametrize(
    ("profile", "asked", "expected"),
    [
        (NO_PROFILE, {}, Speculation()),
        (NO_PROFILE, {"method": "ngram", "num_draft_tokens": 3}, Speculation("ngram", None, 3)),
        (NO_PROFILE, {"draft_model": "own"}, Speculation("draft", "own")),
        (ModelProfile(speculation="off"), {}, Speculation("off")),
        (ModelProfile(speculation="off"), {"draft_model": "own"}, Speculation("draft", "own")),
        (ModelProfile(speculation="off"), {"method": "ngram"}, Speculation("ngram")),
        (WITH_DRAFT, {}, Speculation("draft", "small", 4, optional=True)),
        (WITH_DRAFT, {"method": "draft", "num_draft_tokens": 2}, Speculation("draft", "small", 2, optional=True)),
        (WITH_DRAFT, {"method": "off"}, Speculation("off", None, 4)),
        (WITH_DRAFT, {"method": "ngram"}, Speculation("ngram", None, 4)),
        (WITH_DRAFT, {"draft_model": "own"}, Speculation("draft", "own", 4)),
        (ModelProfile(speculation="ngram"), {}, Speculation("ngram")),
        (WITH_DRAFT, {"prediction": "so"}, Speculation("ngram", None, 4, prediction="so")),
        (ModelProfile(speculation="off"), {"prediction": "so"}, Speculation("ngram", prediction="so")),
    ],
)
def test_who_drafts_is_the_requests_word_then_the_profiles(
    profile: ModelProfile, asked: dict[str, object], expected: Speculation
) -> None:
    assert drafting(profile, **asked) == expected


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            {"method": "off", "prediction": "so"},
            "prediction is only allowed when speculation is auto or ngram, got off",
        ),
        (
            {"draft_model": "own", "prediction": "so"},
            "prediction is not allowed with a draft_model: one of them drafts",
        ),
        ({"method": "draft"}, "draft_model is required when speculation is draft: tiny has none of its own"),
        (
            {"method": "ngram", "draft_model": "own"},
            "draft_model is only allowed when speculation is auto or draft, got ngram",
        ),
        (
            {"method": "off", "draft_model": "own"},
            "draft_model is only allowed when speculation is auto or draft, got off",
        ),
    ],
)
def test_a_draft_model_that_is_missing_or_one_too_many_is_refused(asked: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        drafting(NO_PROFILE, **asked)
    assert (caught.value.field, caught.value.message) == (told.partition(" ")[0], told)


def test_nobody_drafts_vectors() -> None:
    wanted = GenerationRequest("r", "tiny", EmbeddingInputs(("a",)))
    assert WITH_DRAFT.applied_to(wanted, DEFAULT).speculation == Speculation()


def test_without_its_draft_model_a_request_drafts_as_configured() -> None:
    asked = drafting(WITH_DRAFT)
    assert asked.without_model() == Speculation("auto", None, asked.num_draft_tokens, optional=True)
