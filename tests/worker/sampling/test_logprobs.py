"""Log-probabilities: the model's own, of the rows that ask, beside whatever the others ask."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.wire.notifications import TokenLogprobs
from mlx_serving.worker.sampling.logprobs import LogprobSampler, RowLogprobs
from mlx_serving.worker.sampling.row import SamplingRow
from mlx_serving.worker.sampling.sampler import BatchSampler

from ...tiny_models import EOS, token_ids
from ..bench import Bench, load

GREEDY = ResolvedSampling(max_tokens=9, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)


def rows_asking(counts: list[int | None]) -> list[SamplingRow]:
    return [SamplingRow(replace(GREEDY, logprobs=count), 0, [0]) for count in counts]


def read(counts: list[int | None], logits: mx.array, tokens: list[int]) -> dict[int, RowLogprobs]:
    launched = LogprobSampler(rows_asking(counts), logits.shape[-1])(logits, mx.array(tokens))
    return {} if launched is None else launched.read()


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)


@settings(deadline=None)
@given(
    counts=st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=5),
    size=st.sampled_from([21, 259, 2000]),
    seed=st.integers(0, 1000),
)
def test_they_are_those_of_log_softmax_best_first(counts: list[int | None], size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(len(counts), size)) * 4).astype(np.float32)
    tokens = random.integers(size, size=len(counts)).tolist()
    given_to = read(counts, mx.array(logits), tokens)
    assert set(given_to) == {index for index, count in enumerate(counts) if count is not None}
    for index, told in given_to.items():
        expected = log_softmax(logits[index])
        assert told.chosen == pytest.approx(expected[tokens[index]], abs=1e-4)
        best = np.argsort(-expected)[: counts[index]]
        assert [token for token, _ in told.top] == best.tolist()
        assert [logprob for _, logprob in told.top] == pytest.approx(expected[best].tolist(), abs=1e-4)


def test_a_batch_in_which_nobody_asks_computes_none() -> None:
    assert read([None, None], mx.zeros((2, 5)), [0, 1]) == {}
    launched = BatchSampler(rows_asking([None]), 5)(mx.zeros((1, 5)), mx.array([0]))
    assert launched.logprobs is None


def test_more_than_the_vocabulary_has_are_all_of_it() -> None:
    [told] = read([20], mx.array([[3.0, 1.0, 2.0]]), [1]).values()
    assert [token for token, _ in told.top] == [0, 2, 1]
    assert math.fsum(math.exp(logprob) for _, logprob in told.top) == pytest.approx(1.0)


def test_what_the_model_rules_out_has_no_probability() -> None:
    [told] = read([3], mx.array([[-math.inf, 1.0, -math.inf]]), [0]).values()
    assert told.chosen == -math.inf
    assert told.top[0] == (1, 0.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_without_numbers_leaves_the_others_theirs(poison: float) -> None:
    good = [float(index % 7) for index in range(3000)]
    told = read([5, 5, 5], mx.array([good, [poison] * 3000, good]), [1, 2, 1])
    assert told[0] == told[2]
    assert math.isnan(told[1].chosen)
    assert all(math.isfinite(logprob) for _, logprob in told[0].top)


def test_they_are_the_model_s_own_whatever_the_sampling_does_to_the_logits() -> None:
    plain = SamplingRow(replace(GREEDY, logprobs=3), 0, [0])
    odd = replace(
        GREEDY, logprobs=3, temperature=0.1, top_k=1, repetition_penalty=3.0, logit_bias={1: 9.0}, banned_token_ids=(2,)
    )
    logits = mx.array([[0.1, 0.2, 0.9, 0.3]] * 2)
    launched = BatchSampler([plain, SamplingRow(odd, 0, [0, 1])], 4)(logits, mx.array([0, 1]))
    (token, told), (other_token, other) = launched.read()
    assert (token, other_token) == (2, 1)
    assert told is not None
    assert other is not None
    assert other.top == told.top
    assert other.chosen == dict(told.top)[1]


@pytest.fixture(scope="module")
def bench(llama: Path) -> Bench:
    return Bench(load(llama))


def logprobs_of(bench: Bench, stream_id: str) -> list[TokenLogprobs]:
    """Of a stream that was started, run to its end with what runs beside it."""
    told: list[TokenLogprobs] = []
    while len(bench.generation):
        for row in bench.step():
            if row.stream_id == stream_id:
                assert len(row.logprobs or []) == len(row.token_ids)
                told += row.logprobs or []
            elif row.stream_id == "silent":
                assert row.logprobs is None
    return told


def test_every_token_of_a_running_sequence_has_them_in_any_crowd(bench: Bench) -> None:
    """Against the model's own forward pass over prompt and answer."""
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=5, logprobs=2, logit_bias={EOS: -100.0})
    stream = bench.start("asking", "prompt", params)
    bench.start("silent", "other", SamplingParams(max_tokens=20))
    bench.start("late", "another prompt", replace(params, max_tokens=7, logprobs=0))
    told = logprobs_of(bench, "asking")
    bench.streams.clear()
    prompt = token_ids("prompt")
    logits = cast(mx.array, cast(Any, bench.model.model)(mx.array([[*prompt, *stream.tokens]])))
    wide: list[list[float]] = cast(Any, logits[0, len(prompt) - 1 : -1].astype(mx.float32)).tolist()
    expected = log_softmax(np.array(wide))
    assert [each.chosen.token_id for each in told] == stream.tokens
    for place, each, token in zip(expected, told, stream.tokens, strict=True):
        assert each.chosen.logprob == pytest.approx(place[token], abs=1e-3)
        assert [other.token_id for other in each.top] == np.argsort(-place)[:2].tolist()
        assert [other.logprob for other in each.top] == pytest.approx(sorted(place.tolist())[:-3:-1], abs=1e-3)


def test_tokens_are_told_with_their_bytes_and_special_ones_by_name(bench: Bench) -> None:
    special = bench.start(
        "asking", "a", SamplingParams(max_tokens=1, logprobs=20, logit_bias={EOS: 50.0}, ignore_eos=True)
    )
    [told] = logprobs_of(bench, "asking")
    bench.streams.clear()
    assert special.text == ""
    assert (told.chosen.raw, told.chosen.special) == (b"<|im_end|>", True)
    assert len(told.top) == 20
    for other in told.top:
        assert (other.raw, other.special) == bench.model.token_bytes(other.token_id)


def test_the_token_that_ends_the_turn_has_none(bench: Bench) -> None:
    bench.start("asking", "a", SamplingParams(max_tokens=5, logprobs=1, logit_bias={EOS: 50.0}))
    assert logprobs_of(bench, "asking") == []
    bench.streams.clear()
