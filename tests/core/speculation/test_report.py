"""`core.speculation.report`: every sentence that a report may have, and the estimate."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.speculation.report import PairMember, Vocabulary, compare, speedup

WORDS = Vocabulary({"a": 0, "b": 1, "c": 2, "<s>": 3, "</s>": 4}, frozenset({"<s>", "</s>"}), frozenset({4}), 3)
LARGE = PairMember("large", 5, 1000, "llama", 4000, can_draft=True, vocabulary=WORDS)
SMALL = replace(LARGE, id="small", parameter_count=100, memory_bytes=400)


def draft_with(ids: dict[str, int], **changes: object) -> PairMember:
    words = replace(WORDS, ids=ids)
    return replace(SMALL, vocabulary=replace(words, **changes))  # pyright: ignore[reportArgumentType]


def test_a_smaller_model_of_the_same_vocabulary_is_compatible() -> None:
    report = compare(LARGE, SMALL)
    assert (report.compatible, report.errors, report.warnings) == (True, (), ())
    assert report.details.primary_model.id == "large"
    assert (report.details.draft_model.id, report.details.draft_model.parameter_count) == ("small", 100)
    estimate = report.details.performance_estimate
    assert estimate.size_ratio == "10.0%"
    assert estimate.expected_speedup == "1.98x"  # four drafted: (1 - 0.7^5) / 0.3 / 1.4
    assert estimate.recommendation.startswith("worth trying: 1.98x if 70%")


def test_ids_that_mean_other_words_make_a_pair_incompatible() -> None:
    report = compare(LARGE, draft_with({"a": 0, "c": 1, "b": 2, "<s>": 3, "</s>": 4}))
    assert not report.compatible
    assert report.errors == (
        "The vocabularies differ in 2 ids: the first, 1, is 'b' to the primary and 'c' to the draft",
    )
    assert report.details.performance_estimate.expected_speedup == "N/A"
    assert report.details.performance_estimate.recommendation == "not possible, see the errors"


def test_special_tokens_that_differ_are_a_warning() -> None:
    other = draft_with({"a": 0, "b": 1, "c": 2, "<s>": 3, "<end>": 4}, special=frozenset({"<s>", "<end>"}))
    report = compare(LARGE, other)
    assert report.compatible
    assert report.warnings == (
        "Special tokens differ in 1 ids: the first, 4, is '</s>' to the primary and '<end>' to the draft",
    )


def test_a_word_that_is_a_special_token_to_the_other_is_a_warning() -> None:
    other = draft_with({"a": 0, "b": 1, "<pad>": 2, "<s>": 3, "</s>": 4}, special=frozenset({"<pad>"}))
    report = compare(LARGE, other)
    assert report.compatible
    assert len(report.warnings) == 1


def test_tokens_that_only_the_primary_has_are_a_warning() -> None:
    report = compare(LARGE, draft_with({"a": 0, "b": 1, "<s>": 3, "</s>": 4}))
    assert report.compatible
    assert report.warnings == ("The draft model does not know 1 of the primary model's 5 tokens",)


def test_models_that_give_logits_to_other_numbers_of_ids_do_not_pair() -> None:
    report = compare(LARGE, replace(SMALL, vocab_size=8))
    assert report.errors == ("The vocabularies differ in size: 5 and 8",)


def test_tokens_that_only_the_draft_has_matter_to_nobody() -> None:
    report = compare(LARGE, draft_with({**WORDS.ids, "d": 5}))
    assert (report.compatible, report.warnings) == (True, ())


def test_other_ends_and_beginnings_are_warnings() -> None:
    report = compare(LARGE, draft_with(dict(WORDS.ids), eos=frozenset({2, 4}), bos=None))
    assert report.warnings == (
        "The tokens that end a turn differ: [4] and [2, 4]",
        "The tokens that begin a text differ: 3 and None",
    )


def test_another_architecture_is_a_warning() -> None:
    assert compare(LARGE, replace(SMALL, architecture="qwen2")).warnings == (
        "The architectures differ: llama and qwen2",
    )


def test_a_draft_that_is_not_smaller_is_a_warning_and_not_worth_it() -> None:
    report = compare(LARGE, replace(LARGE, id="same"))
    assert report.compatible
    assert report.warnings == ("The draft model is not smaller: 1000 parameters, the primary model has 1000",)
    assert report.details.performance_estimate.size_ratio == "100.0%"
    assert report.details.performance_estimate.recommendation.startswith("not worth it: 0.85x")


@pytest.mark.parametrize(("primary", "draft"), [(False, True), (True, False), (False, False)])
def test_models_that_cannot_take_tokens_back_do_not_pair(primary: bool, draft: bool) -> None:
    report = compare(replace(LARGE, can_draft=primary), replace(SMALL, can_draft=draft))
    assert len(report.errors) == (not primary) + (not draft)
    assert not report.compatible
    told = " ".join(report.errors)
    assert ("The primary model cannot" in told, "The draft model cannot" in told) == (not primary, not draft)


def test_a_primary_of_unknown_size_is_not_estimated() -> None:
    estimate = compare(replace(LARGE, parameter_count=0, memory_bytes=0), SMALL).details.performance_estimate
    assert (estimate.expected_speedup, estimate.size_ratio) == ("N/A", "N/A")


def test_a_report_takes_the_names_that_callers_know() -> None:
    report = compare(LARGE, SMALL).called("chat", "helper")
    assert (report.details.primary_model.id, report.details.draft_model.id) == ("chat", "helper")
    assert report.details.draft_model.vocab_size == 5


@given(
    cost=st.floats(0.001, 2), acceptance=st.floats(0, 0.99), drafted=st.integers(1, 16)
)  # a draft that is never right costs what it costs
def test_the_estimate_is_between_the_worst_and_the_best(cost: float, acceptance: float, drafted: int) -> None:
    worst, best = 1 / (1 + drafted * cost), (drafted + 1) / (1 + drafted * cost)
    assert worst * 0.999 <= speedup(cost, acceptance, drafted) <= best * 1.001


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5), max_size=6),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5), max_size=6),
    st.frozensets(st.sampled_from("abcdef")),
)
def test_a_pair_is_compatible_exactly_if_no_id_means_two_words(
    mine: dict[str, int], other: dict[str, int], special: frozenset[str]
) -> None:
    mine, other = _one_token_an_id(mine), _one_token_an_id(other)
    first = replace(LARGE, vocabulary=replace(WORDS, ids=mine, special=special))
    second = replace(SMALL, vocabulary=replace(WORDS, ids=other, special=special))
    words = {token_id: token for token, token_id in other.items()}
    clash = any(
        words.get(token_id, token) != token and not {token, words[token_id]} & special
        for token, token_id in mine.items()
    )
    assert compare(first, second).compatible is not clash


def _one_token_an_id(ids: dict[str, int]) -> dict[str, int]:
    return {token: token_id for token_id, token in {number: token for token, number in ids.items()}.items()}
