"""What each sampling parameter does, shown on sequences of a real model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.worker.sampling import SeededSampler, greedy, make_processors, make_sampler, position_key

from ..tiny_models import EOS, VOCABULARY, token_ids
from .bench import Bench, load

NO_END = {EOS: -100.0}
DRAWS = 300
PROBABILITIES = (0.4, 0.3, 0.2, 0.06, 0.04)


@pytest.fixture(scope="module")
def bench(llama: Path) -> Bench:
    return Bench(load(llama))


@pytest.fixture(scope="module")
def spelling(speller: Path) -> Bench:
    return Bench(load(speller))


def resolved(
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> ResolvedSampling:
    return ResolvedSampling(
        max_tokens=1,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )


def drawn(sampling: ResolvedSampling, seed: int = 0) -> Counter[int]:
    """How often each token came in many draws from `PROBABILITIES`."""
    sampler = make_sampler(sampling, seed, len(PROBABILITIES))
    logprobs = mx.log(mx.array([PROBABILITIES]))
    return Counter(int(str(sampler(logprobs).item())) for _ in range(DRAWS))


def test_temperature_0_takes_the_likeliest_token() -> None:
    assert make_sampler(resolved(temperature=0.0), 0, 5) is greedy
    assert drawn(resolved(temperature=0.0)) == {0: DRAWS}


def test_a_temperature_too_low_to_divide_by_is_greedy() -> None:
    assert drawn(resolved(temperature=5e-324)) == {0: DRAWS}


def test_temperature_1_draws_from_the_model_s_distribution() -> None:
    counts = drawn(resolved())
    for token, probability in enumerate(PROBABILITIES):
        assert abs(counts[token] / DRAWS - probability) < 0.1


def test_temperature_sharpens_and_flattens() -> None:
    cold, warm, hot = (drawn(resolved(temperature=temperature))[0] for temperature in (0.3, 1.0, 2.0))
    assert cold > warm > hot


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        pytest.param(resolved(), {0, 1, 2, 3, 4}, id="no filter"),
        pytest.param(resolved(top_k=2), {0, 1}, id="top_k"),
        pytest.param(resolved(top_k=1), {0}, id="top_k of one"),
        pytest.param(resolved(top_k=5), {0, 1, 2, 3, 4}, id="top_k of all"),
        pytest.param(resolved(top_k=1000), {0, 1, 2, 3, 4}, id="top_k of more than all"),
        pytest.param(resolved(top_p=0.5), {0, 1}, id="top_p"),
        pytest.param(resolved(top_p=1e-9), {0}, id="top_p of nothing keeps one"),
        pytest.param(resolved(min_p=0.4), {0, 1, 2}, id="min_p"),
        pytest.param(resolved(min_p=1.0), {0}, id="min_p of one"),
        pytest.param(resolved(top_p=0.8, top_k=2, min_p=0.1), {0, 1}, id="all of them"),
    ],
)
def test_filters_leave_only_the_likeliest(sampling: ResolvedSampling, possible: set[int]) -> None:
    assert set(drawn(sampling)) == possible


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    assert drawn(resolved(), seed=7) == drawn(resolved(), seed=7)
    keys = {str(position_key(seed, position)) for seed in (0, 1, 2**64 - 1) for position in range(20)}
    assert len(keys) == 60
    logprobs = mx.log(mx.array([PROBABILITIES]))
    whole = SeededSampler(resolved(), 3, 5)
    first = [whole(logprobs).item() for _ in range(20)]
    assert [SeededSampler(resolved(), 3, 5, position)(logprobs).item() for position in range(20)] == first


def test_a_seed_repeats_a_text_and_another_gives_another(bench: Bench) -> None:
    def tokens(seed: int) -> list[int]:
        return bench.run("seed", SamplingParams(temperature=1.0, seed=seed, logit_bias=NO_END)).tokens

    assert tokens(1) == tokens(1)
    assert len({tuple(tokens(seed)) for seed in range(5)}) == 5


def test_logit_bias_bans_and_forces_tokens(spelling: Bench) -> None:
    ban, force = token_ids("c")[0], token_ids("!")[0]
    assert spelling.run("a", SamplingParams(max_tokens=2)).text == "bc"
    banned = spelling.run("a", SamplingParams(max_tokens=2, logit_bias={ban: -100.0}))
    assert banned.text[0] == "b"
    assert ban not in banned.tokens
    assert spelling.run("a", SamplingParams(max_tokens=4, logit_bias={force: 100.0})).text == "!!!!"


def test_the_turn_does_not_end_when_its_end_is_banned(spelling: Bench) -> None:
    assert spelling.run("9", SamplingParams(max_tokens=5)).tokens == []
    assert len(spelling.run("9", SamplingParams(max_tokens=5, logit_bias=NO_END)).tokens) == 5


@pytest.mark.parametrize(
    "sampling",
    [resolved(repetition_penalty=3.0), resolved(presence_penalty=2.0), resolved(frequency_penalty=2.0)],
    ids=["repetition", "presence", "frequency"],
)
def test_a_penalty_turns_the_choice_from_what_was_seen(sampling: ResolvedSampling) -> None:
    [process] = make_processors(sampling)
    logits = [[1.0, 0.5, 0.2]]
    assert process(mx.array([1, 2]), mx.array(logits)).argmax().item() == 0
    assert process(mx.array([2, 0]), mx.array(logits)).argmax().item() == 1


def test_the_frequency_penalty_grows_with_every_repetition() -> None:
    [process] = make_processors(resolved(frequency_penalty=0.5))
    once, twice = (process(mx.array(seen), mx.zeros((1, 3)))[0, 1].item() for seen in ([1], [1, 0, 1]))
    assert (once, twice) == (-0.5, -1.0)
    [process] = make_processors(resolved(presence_penalty=0.5))
    once, twice = (process(mx.array(seen), mx.zeros((1, 3)))[0, 1].item() for seen in ([1], [1, 0, 1]))
    assert (once, twice) == (-0.5, -0.5)


def test_the_repetition_penalty_lowers_positive_and_negative_logits() -> None:
    [process] = make_processors(resolved(repetition_penalty=2.0))
    assert process(mx.array([0, 1]), mx.array([[4.0, -4.0, 1.0]])).tolist() == [[2.0, -8.0, 1.0]]


def test_without_bias_and_penalties_there_is_nothing_to_process() -> None:
    assert make_processors(resolved()) == []


def test_penalties_reach_a_running_sequence(bench: Bench) -> None:
    plain = bench.run("aaaa", SamplingParams(max_tokens=24, logit_bias=NO_END)).tokens
    strict = bench.run("aaaa", SamplingParams(max_tokens=19, repetition_penalty=1e9, logit_bias=NO_END)).tokens
    assert len(set(plain)) < len(plain)
    assert len(set(strict)) == len(strict)


def test_rows_of_a_batch_keep_their_own_parameters(bench: Bench) -> None:
    """Greedy, seeded, hot, biased and penalised side by side: each as if it were alone."""
    force = token_ids("z")[0]
    rows = {
        "greedy": SamplingParams(),
        "seeded": SamplingParams(temperature=0.8, seed=11),
        "hot": SamplingParams(temperature=2.0, seed=12, logit_bias=NO_END),
        "narrow": SamplingParams(temperature=2.0, seed=12, top_k=1),
        "forced": SamplingParams(logit_bias={force: 100.0}, max_tokens=7),
        "penalised": SamplingParams(repetition_penalty=1e9, logit_bias=NO_END),
        "stopped": SamplingParams(stop_token_ids=tuple(range(0, VOCABULARY, 2))),
    }
    alone = {name: bench.run("prompt", params) for name, params in rows.items()}
    together = {name: bench.start(name, "prompt", params) for name, params in rows.items()}
    bench.finish()
    bench.streams.clear()
    for name, stream in together.items():
        assert stream.tokens == alone[name].tokens, name
        assert stream.completed.finish_reason == alone[name].completed.finish_reason, name
    assert together["narrow"].tokens == together["greedy"].tokens
    assert together["forced"].tokens == [force] * 7
    assert together["hot"].tokens != together["greedy"].tokens
