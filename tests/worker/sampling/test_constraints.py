"""What may not be drawn, and when it may again: on sequences of a model that spells the alphabet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_serving.core.generation import FinishReason, SamplingParams
from mlx_serving.core.sampling_defaults import ResolvedSampling, SamplingDefaults, resolve
from mlx_serving.errors import InvalidRequest
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.requests import rules_of
from mlx_serving.worker.sampling.row import SamplingRow, TokenRules
from mlx_serving.worker.sampling.sampler import BatchSampler

from ...tiny_models import EOS, VOCABULARY, token_ids
from ..bench import Bench, load


@pytest.fixture(scope="module")
def spelling(speller: Path) -> Bench:
    return Bench(load(speller))


def text(bench: Bench, prompt: str, params: SamplingParams) -> str:
    return bench.run(prompt, params).text


FOUR = SamplingParams(max_tokens=4)


def test_banned_tokens_never_come_whatever_favours_them(spelling: Bench) -> None:
    [banned] = token_ids("c")
    assert text(spelling, "a", FOUR) == "bcde"
    for params in (
        replace(FOUR, banned_token_ids=(banned,)),
        replace(FOUR, banned_token_ids=(banned,), logit_bias={banned: 100.0}),
        replace(FOUR, banned_token_ids=(banned,), temperature=2.0, seed=1),
    ):
        stream = spelling.run("a", params)
        assert banned not in stream.tokens
        assert len(stream.tokens) == 4


def test_nothing_comes_but_allowed_tokens(spelling: Bench) -> None:
    allowed = tuple(token_ids("bxy"))
    assert text(spelling, "a", replace(FOUR, allowed_token_ids=allowed))[0] == "b"
    for seed in range(5):
        stream = spelling.run("a", replace(FOUR, allowed_token_ids=allowed, temperature=2.0, seed=seed))
        assert set(stream.tokens) <= set(allowed)


def test_a_bad_word_is_cut_before_its_last_token_and_only_there(spelling: Bench) -> None:
    assert text(spelling, "a", replace(FOUR, bad_words=("cde",)))[:3] == "bcd"
    assert text(spelling, "a", replace(FOUR, bad_words=("cde",)))[3] != "e"
    assert text(spelling, "a", replace(FOUR, bad_words=("xde", "dec"))) == "bcde"


def test_a_bad_word_looks_at_the_answer_alone(spelling: Bench) -> None:
    """The prompt's last letter does not count: the word is not in what is generated."""
    assert text(spelling, "a", replace(FOUR, bad_words=("ab",))) == "bcde"
    assert text(spelling, "a", replace(FOUR, bad_words=("b",)))[0] != "b"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "params",
    [
        {"allowed_token_ids": tuple(token_ids("a")), "bad_words": ("aaa",)},
        {"allowed_token_ids": (*token_ids("a"), EOS), "bad_words": ("aaa",), "min_tokens": 3},
        {"banned_token_ids": tuple({*range(VOCABULARY)} - {*token_ids("a")}), "bad_words": ("aaa",)},
        {"allowed_token_ids": (0, 1), "bad_words": ("!!!", '!!"', '"', '!!"')},
    ],
    ids=["allowed", "the end is too early", "banned", "token 0"],
)
def test_who_has_no_token_left_fails_alone(spelling: Bench, params: dict[str, object], temperature: float) -> None:
    beside = spelling.start("beside", "a", FOUR)
    asked = SamplingParams(max_tokens=4, temperature=temperature, **params)  # type: ignore[arg-type]
    stream = spelling.start("bad", "x", asked)
    spelling.finish()
    assert len(stream.tokens) == 2
    error = stream.failed.error
    assert (error.data["type"], error.message) == (
        "InvalidParams",
        "bad_words and what else is banned leave no token to choose, after 2 tokens",
    )
    assert beside.text == "bcde"
    spelling.streams.clear()


def test_bad_words_beside_others_are_nobody_else_s(spelling: Bench) -> None:
    alone = {word: text(spelling, "a", replace(FOUR, bad_words=(word,))) for word in ("b", "cd", "cde")}
    streams = {word: spelling.start(word, "a", replace(FOUR, bad_words=(word,))) for word in alone}
    free = spelling.start("free", "a", FOUR)
    spelling.finish()
    assert {word: stream.text for word, stream in streams.items()} == alone
    assert free.text == "bcde"
    spelling.streams.clear()


@pytest.mark.parametrize("count", [1, 3])
def test_the_turn_does_not_end_before_min_tokens_and_may_then(spelling: Bench, count: int) -> None:
    assert spelling.run("9", FOUR).tokens == []
    assert len(spelling.run("9", replace(FOUR, min_tokens=count)).tokens) >= count
    # Every token of the speller is followed by one of its own, so only its last one can end the turn.
    stream = spelling.run("7", replace(FOUR, max_tokens=9, min_tokens=2))
    assert (stream.text, stream.completed.finish_reason) == ("89", FinishReason.STOP)
    assert EOS not in spelling.run("7", replace(FOUR, max_tokens=9, min_tokens=5)).tokens[:5]


def test_a_batch_that_stays_together_lets_each_row_end_in_its_own_time() -> None:
    """The sampler is made once; rows pass their `min_tokens` one after the other."""
    ended = ResolvedSampling(max_tokens=9, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
    rows = [
        SamplingRow(replace(ended, min_tokens=least), 0, [0], rules=TokenRules(ends=frozenset({2})))
        for least in (1, 3, 0, 2)
    ]
    sampler, logits = BatchSampler(rows, 4), mx.array([[0.0, 1.0, 2.0, 0.0]] * len(rows))
    steps = [[token for token, _ in sampler(logits, mx.array([0] * len(rows))).read()] for _ in range(4)]
    assert steps == [[1, 1, 2, 1], [2, 1, 2, 1], [2, 1, 2, 2], [2, 2, 2, 2]]


def test_stop_tokens_and_stop_strings_wait_for_min_tokens_too(spelling: Bench) -> None:
    [stop] = token_ids("c")
    assert text(spelling, "a", replace(FOUR, stop_token_ids=(stop,))) == "b"
    waiting = spelling.run("a", replace(FOUR, stop_token_ids=(stop,), min_tokens=3))
    assert stop not in waiting.tokens[:3]
    assert text(spelling, "a", replace(FOUR, stop=("c",), min_tokens=3)) == "bcde"
    assert text(spelling, "a", replace(FOUR, stop=("d",), min_tokens=2)) == "bc"


def test_the_model_s_own_end_can_be_ignored_but_not_a_stop_token(spelling: Bench) -> None:
    ignoring = spelling.run("8", replace(FOUR, ignore_eos=True))
    assert ignoring.completed.finish_reason is FinishReason.LENGTH
    assert len(ignoring.tokens) == 4
    assert ignoring.tokens[1] == EOS
    assert ignoring.text.startswith("9")
    assert spelling.run("8", replace(FOUR, ignore_eos=True, stop_token_ids=(EOS,))).text == "9"


@pytest.fixture(scope="module")
def model(speller: Path) -> LoadedModel:
    return load(speller)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(allowed_token_ids=(5,), banned_token_ids=(5,)), "allowed_token_ids"),
        (SamplingParams(allowed_token_ids=(EOS,), min_tokens=1), "allowed_token_ids"),
        (SamplingParams(allowed_token_ids=(5,), stop_token_ids=(5,), min_tokens=1), "allowed_token_ids"),
        (SamplingParams(allowed_token_ids=tuple(token_ids("ab")), bad_words=("a", "b")), "allowed_token_ids"),
        (SamplingParams(banned_token_ids=tuple(range(VOCABULARY))), "banned_token_ids"),
    ],
)
def test_a_request_that_leaves_no_token_is_refused(model: LoadedModel, params: SamplingParams, field: str) -> None:
    with pytest.raises(InvalidRequest, match="leave no token to choose") as caught:
        rules_of(resolve(params, {}, SamplingDefaults()), model)
    assert caught.value.field == field


def test_ids_that_the_model_does_not_have_are_no_rules(model: LoadedModel) -> None:
    """Stop tokens may be those of another model: they never come."""
    rules = rules_of(resolve(SamplingParams(stop_token_ids=(10**9, 3), min_tokens=1), {}, SamplingDefaults()), model)
    assert rules.ends == {EOS, 3}
    assert rules.spared == {EOS, *token_ids("\n")}
