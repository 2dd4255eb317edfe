"""What each filter keeps, against a reference that sorts; and that no filter looks beyond its row."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.worker.sampling import filters
from mlx_serving.worker.sampling.filters import LikeliestFilter, TypicalFilter, XtcFilter
from mlx_serving.worker.sampling.randomness import coin
from mlx_serving.worker.sampling.row import SamplingRow, TokenRules

from . import reference_sampler as reference
from .reference_sampler import Floats

SIZES = st.sampled_from([5, 259, 1024, 1025, 3001, 6000])
"""Below and above what is sorted at once; halving an odd number, and an even one."""
SHARPNESS = st.sampled_from([0.0, 0.3, 1.0, 3.0, 10.0])


def sampling(
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    xtc_probability: float = 0.0,
    xtc_threshold: float = 0.1,
) -> ResolvedSampling:
    return ResolvedSampling(
        max_tokens=1,
        temperature=1.0,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=1.0,
        typical_p=typical_p,
        xtc_probability=xtc_probability,
        xtc_threshold=xtc_threshold,
    )


def rows_of(samplings: Sequence[ResolvedSampling], spared: frozenset[int] = frozenset()) -> list[SamplingRow]:
    return [SamplingRow(one, seed, [0], rules=TokenRules(spared=spared)) for seed, one in enumerate(samplings)]


def shares_of(rows: int, size: int, sharpness: float, seed: int) -> Floats:
    """float32 shares; all are equal where nothing is sharp."""
    logits = np.random.default_rng(seed).normal(size=(rows, size)) * sharpness
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32).astype(np.float64)


def kept(
    kind: type[LikeliestFilter | TypicalFilter | XtcFilter], rows: Sequence[SamplingRow], shares: Floats
) -> Floats:
    """1 for what is kept of each row, 0 for what is not."""
    after = kind(rows, shares.shape[1]).apply(mx.array(shares.astype(np.float32)))
    return (np.array(after) > 0).astype(np.float64)


likeliest_params = st.builds(
    sampling,
    top_k=st.sampled_from([0, 1, 2, 40, 1500, 5999, 10**9]),
    top_p=st.sampled_from([1.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(
    samplings=st.lists(likeliest_params, min_size=1, max_size=4),
    size=SIZES,
    sharpness=SHARPNESS.filter(bool),
    seed=st.integers(0, 1000),
)
def test_the_likeliest_are_those_that_sorting_finds(
    samplings: list[ResolvedSampling], size: int, sharpness: float, seed: int
) -> None:
    """Within rounding of top-p: nothing is missing that a little less would keep, and nothing is there that a little
    more would not."""
    shares = shares_of(len(samplings), size, sharpness, seed)
    ours = kept(LikeliestFilter, rows_of(samplings), shares)
    for one, row, mine in zip(samplings, shares, ours, strict=True):
        least = reference.likeliest(row, one.top_k, one.top_p * (1 - 1e-5), one.min_p)
        most = reference.likeliest(row, one.top_k, one.top_p * (1 + 1e-5), one.min_p)
        possible = row > 0
        assert (mine[least & possible] == 1).all()
        assert (mine[~most] == 0).all()


@pytest.mark.parametrize("size", [7, 5000])
@pytest.mark.parametrize(
    "one", [sampling(top_k=3), sampling(top_p=0.4), sampling(min_p=1.0), sampling(top_k=2, top_p=0.5, min_p=0.9)]
)
def test_what_ties_with_the_last_one_is_kept_too(one: ResolvedSampling, size: int) -> None:
    assert kept(LikeliestFilter, rows_of([one]), shares_of(1, size, 0.0, 0)).all()


@pytest.mark.parametrize("sorted_at_once", [4, 64, 10_000])
def test_it_does_not_matter_how_much_is_sorted_at_once(sorted_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices differ in that."""
    samplings = [sampling(top_p=0.9), sampling(top_k=100), sampling(top_p=0.5, top_k=30), sampling(top_p=0.9999)]
    shares = shares_of(len(samplings), 3000, 1.0, 1)
    expected = kept(LikeliestFilter, rows_of(samplings), shares)
    monkeypatch.setattr(filters, "_SORTED_AT_ONCE", sorted_at_once)
    assert (kept(LikeliestFilter, rows_of(samplings), shares) == expected).all()


@settings(max_examples=40, deadline=None)
@given(
    masses=st.lists(st.sampled_from([0.05, 0.2, 0.5, 0.9, 0.99]), min_size=1, max_size=3),
    size=SIZES,
    sharpness=SHARPNESS.filter(bool),
    seed=st.integers(0, 1000),
)
def test_typical_tokens_are_those_nearest_to_the_entropy(
    masses: list[float], size: int, sharpness: float, seed: int
) -> None:
    """float32 orders those at nearly the same distance by chance: they are left out of the comparison."""
    shares = shares_of(len(masses), size, sharpness, seed)
    ours = kept(TypicalFilter, rows_of([sampling(typical_p=mass) for mass in masses]), shares)
    for mass, row, mine in zip(masses, shares, ours, strict=True):
        least, most = reference.typical(row, mass * (1 - 1e-4)), reference.typical(row, mass * (1 + 1e-4))
        possible = row > 0
        information = -np.log(np.where(possible, row, 1.0))
        distance = np.abs(information - (row * information).sum())
        border = distance[most & possible].max()
        clear = np.abs(distance - border) > 1e-5 * (1 + information.max())
        assert (mine[least & clear] == 1).all()
        assert (mine[~most & clear & possible] == 0).all()
        assert mine.any()


@settings(deadline=None)
@given(
    thresholds=st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5]), min_size=1, max_size=3),
    sharpness=SHARPNESS,
    seed=st.integers(0, 1000),
    spared=st.frozensets(st.integers(0, 11), max_size=3),
)
def test_xtc_removes_all_but_the_least_likely_of_those_above_the_threshold(
    thresholds: list[float], sharpness: float, seed: int, spared: frozenset[int]
) -> None:
    shares = shares_of(len(thresholds), 12, sharpness, seed)
    if sharpness == 0.0:
        spared = frozenset()  # the order of equals is nobody's
    samplings = [sampling(xtc_probability=1.0, xtc_threshold=threshold) for threshold in thresholds]
    ours = kept(XtcFilter, rows_of(samplings, spared), shares)
    for threshold, row, mine in zip(thresholds, shares, ours, strict=True):
        expected = reference.excluded(row, threshold, spared) if sharpness else np.zeros(12, dtype=np.bool_)
        assert (mine == ~expected).all()


def test_xtc_happens_in_its_share_of_the_draws_and_by_seed_and_position_alone() -> None:
    one = sampling(xtc_probability=0.3, xtc_threshold=0.1)
    shares = np.array([[0.6, 0.3, 0.1]])
    happened: list[bool] = []
    for position in range(400):
        row = SamplingRow(one, 7, [0], position=position)
        happened.append(kept(XtcFilter, [row], shares)[0].tolist() == [0.0, 1.0, 1.0])
        assert happened[-1] == (coin(7, position) <= 0.3)
    assert 0.2 < sum(happened) / len(happened) < 0.4


@settings(max_examples=25, deadline=None)
@given(st.lists(likeliest_params, min_size=2, max_size=5), st.integers(0, 1000))
def test_a_filter_gives_a_row_what_it_gives_it_alone(samplings: list[ResolvedSampling], seed: int) -> None:
    shares = shares_of(len(samplings), 2500, 1.0, seed)
    rows = rows_of(samplings)
    together = kept(LikeliestFilter, rows, shares)
    for index, row in enumerate(rows):
        assert (kept(LikeliestFilter, [row], shares[index : index + 1]) == together[index]).all()


@pytest.mark.parametrize("kind", [TypicalFilter, XtcFilter])
def test_what_earlier_filters_left_need_not_add_up_to_1(kind: type[TypicalFilter | XtcFilter]) -> None:
    rows = rows_of([sampling(typical_p=0.6, xtc_probability=1.0, xtc_threshold=0.1)] * 3)
    shares = shares_of(3, 20, 1.5, 3)
    some = kept(kind, rows, shares)
    assert 0 < some.sum() < some.size
    assert (kept(kind, rows, shares / 64) == some).all()
