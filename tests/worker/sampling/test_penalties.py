"""Penalties on logits that can be read, step by step; rows that do not ask keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.worker.sampling.penalties import AnswerPenalties, RepetitionPenalty
from mlx_serving.worker.sampling.row import SamplingRow

from . import reference_sampler as reference
from .reference_sampler import Floats, Place

VOCABULARY = 7
PLAIN = ResolvedSampling(max_tokens=50, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=9).map(tuple)


def asking(
    kind: type[RepetitionPenalty | AnswerPenalties], rows: Sequence[SamplingRow]
) -> list[tuple[int, SamplingRow]]:
    return [(index, row) for index, row in enumerate(rows) if kind.is_asked(row)]


def applied(edit: RepetitionPenalty | AnswerPenalties, logits: Floats, inputs: Sequence[int]) -> Floats:
    after = edit.apply(mx.array(logits.astype(np.float32)), mx.array(list(inputs), dtype=mx.uint32))
    return np.array(cast(Any, after).tolist())


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([1.0, 0.5, 2.0]), st.integers(0, 5), TOKENS.filter(bool), TOKENS),
        min_size=2,
        max_size=4,
    ),
    steps=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=4, max_size=4), min_size=1, max_size=6),
    kind=st.sampled_from([RepetitionPenalty, AnswerPenalties]),
)
def test_logits_are_those_of_the_reference_at_every_step(
    rows: list[tuple[float, int, tuple[int, ...], tuple[int, ...]]],
    steps: list[list[int]],
    kind: type[RepetitionPenalty | AnswerPenalties],
) -> None:
    """Windows of different lengths side by side; the answer grows under a penalty that was made once."""
    logits = np.random.default_rng(1).normal(size=(len(rows), VOCABULARY)).astype(np.float32).astype(np.float64)
    places: list[Place] = []
    for strength, window, prompt, answer in rows:
        repetition = replace(PLAIN, repetition_penalty=strength, repetition_context_size=window)
        other = replace(PLAIN, presence_penalty=strength - 1, frequency_penalty=window / 10)
        places.append(Place(repetition if kind is RepetitionPenalty else other, 0, prompt, answer))
    batch = [SamplingRow(one.sampling, 0, one.prompt, list(one.answer), len(one.answer)) for one in places]
    if not asking(kind, batch):
        return
    edit = kind(asking(kind, batch), VOCABULARY)
    for step in steps:
        fed = [one.answer[-1] if one.answer else one.prompt[-1] for one in places]
        ours = applied(edit, logits, fed)
        for mine, before, one in zip(ours, logits, places, strict=True):
            assert mine == pytest.approx(reference.edited(before, one), abs=1e-5)
        for row in batch:
            row.position += 1
        places = [replace(one, answer=(*one.answer, token)) for one, token in zip(places, step, strict=False)]


def test_a_row_of_any_company_looks_at_its_own_window() -> None:
    rows = [
        SamplingRow(replace(PLAIN, repetition_penalty=2.0, repetition_context_size=window), 0, [1, 2, 3, 4])
        for window in (1, 3, 0)
    ]
    [one, three, everything] = applied(
        RepetitionPenalty(asking(RepetitionPenalty, rows), VOCABULARY), np.ones((3, VOCABULARY)), [4, 4, 4]
    )
    assert one.tolist() == [1, 1, 1, 1, 0.5, 1, 1]
    assert three.tolist() == [1, 1, 0.5, 0.5, 0.5, 1, 1]
    assert everything.tolist() == [1, 0.5, 0.5, 0.5, 0.5, 1, 1]


def test_a_token_leaves_the_window_when_it_is_full() -> None:
    row = SamplingRow(replace(PLAIN, repetition_penalty=2.0, repetition_context_size=2), 0, [0])
    edit = RepetitionPenalty([(0, row)], VOCABULARY)
    seen: list[list[int]] = []
    for token in (0, 1, 1, 2):
        [after] = applied(edit, np.ones((1, VOCABULARY)), [token])
        seen.append(np.flatnonzero(after == 0.5).tolist())
        row.position += 1
    assert seen == [[0], [0, 1], [1], [1, 2]]


@pytest.mark.parametrize("window", [0, 10**15])
def test_a_window_takes_no_more_memory_than_there_can_be_tokens(window: int) -> None:
    asked = replace(PLAIN, repetition_penalty=2.0, repetition_context_size=window, max_tokens=10**15)
    row = SamplingRow(asked, 0, [1, 2], max_tokens=3)
    [after] = applied(RepetitionPenalty([(0, row)], VOCABULARY), np.ones((1, VOCABULARY)), [2])
    assert np.flatnonzero(after == 0.5).tolist() == [1, 2]


@pytest.mark.parametrize("strength", [5e-324, 1.7e308])
def test_logits_stay_numbers_whatever_the_strength(strength: float) -> None:
    row = SamplingRow(replace(PLAIN, repetition_penalty=strength), 0, [0, 1, 2])
    logits = np.array([[0.0, 2.0, -2.0, 1.0, 1.0, 1.0, 1.0]])
    [penalised] = applied(RepetitionPenalty([(0, row)], VOCABULARY), logits, [2])
    assert np.isfinite(penalised / 1e-5).all()
    assert np.sign(penalised[:3]).tolist() == [0, 1, -1]
