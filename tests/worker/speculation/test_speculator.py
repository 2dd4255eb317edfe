"""Who of a batch drafts, and when."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.core.speculation.policy import SpeculationCounts
from mlx_serving.worker.sampling.row import SamplingRow, TokenRules
from mlx_serving.worker.speculation.drafter import Wanted
from mlx_serving.worker.speculation.model_drafter import ModelDrafter
from mlx_serving.worker.speculation.speculator import Speculator
from mlx_serving.worker.speculation.verification import Draws

GREEDY = ResolvedSampling(
    max_tokens=1000, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, logit_bias={}
)
REPEATED = [5, 6, 7, 8, 9] * 4
END = 99


@pytest.fixture
def speculator() -> Speculator:
    return Speculator(ModelDrafter, able=True, weight_bytes=1)


def row_of(prompt: Sequence[int], drawn: Sequence[int] = (), max_tokens: int = 1000) -> SamplingRow:
    rules = TokenRules(ends=frozenset({END}))
    return SamplingRow(GREEDY, 0, list(prompt), list(drawn), len(drawn), rules=rules, max_tokens=max_tokens)


def opened(
    speculator: Speculator, rows: Sequence[SamplingRow], wanted: Wanted | None = None
) -> list[tuple[str, SamplingRow]]:
    for number, row in enumerate(rows):
        speculator.open(str(number), row, wanted or Wanted("ngram"))
    return [(str(number), row) for number, row in enumerate(rows)]


def noise(seed: int) -> list[int]:
    return random.Random(seed).sample(range(1000), 100)


def test_text_that_repeats_itself_is_drafted_and_other_text_is_not(speculator: Speculator) -> None:
    rows = opened(speculator, [row_of(REPEATED), row_of(noise(1))])
    assert speculator.is_likely(rows)
    drafts = speculator.propose(rows)
    assert drafts is not None
    assert drafts[0][:5] == [5, 6, 7, 8, 9][: len(drafts[0])]
    assert drafts[1] == []
    calm = opened(speculator, [row_of(noise(1)), row_of(noise(2))])
    assert not speculator.is_likely(calm)
    assert speculator.propose(calm) is None
    assert speculator.counts == SpeculationCounts()


def test_a_large_batch_goes_on_without_a_draft_of_one_row(speculator: Speculator) -> None:
    rows = opened(speculator, [row_of(REPEATED), *(row_of(noise(seed)) for seed in range(15))])
    assert not speculator.is_likely(rows)
    assert speculator.propose(rows) is None
    assert speculator.counts.declined == 2


def test_nothing_is_drafted_behind_the_end_or_the_last_tokens(speculator: Speculator) -> None:
    for row in (row_of([1, 2, 3, END, 4, 1, 2, 3], [END]), row_of(REPEATED, [5, 6], max_tokens=4)):
        assert speculator.propose(opened(speculator, [row])) is None
    drafts = speculator.propose(opened(speculator, [row_of(REPEATED, [5, 6], max_tokens=6)]))
    assert drafts == [[7, 8]]


@pytest.mark.parametrize("wanted", [Wanted(), Wanted("off")])
def test_who_wants_nothing_gets_nothing(speculator: Speculator, wanted: Wanted) -> None:
    rows = opened(speculator, [row_of(REPEATED)], wanted)
    assert speculator.propose(rows) is None
    assert rows[0][1].drafting is None


def test_a_limit_that_is_asked_for_holds(speculator: Speculator) -> None:
    assert speculator.propose(opened(speculator, [row_of(REPEATED)], Wanted("ngram", 2))) == [[5, 6]]


def test_a_row_whose_likely_drafts_come_to_nothing_rests(speculator: Speculator) -> None:
    """Each time its text ends as before, and each time it goes on in another way."""
    row = row_of(REPEATED)
    rows = opened(speculator, [row])
    drafting = row.drafting
    assert drafting is not None
    reads = 0
    for number in range(60):
        row.position += 1  # launched, and not read yet
        reads += speculator.is_likely(rows)
        row.drawn.append(100 + number)
        assert speculator.propose(rows) is None
        for token in (5, 6, 7):
            row.drawn.append(token)
            row.position += 1
    assert 0 < reads < 30
    assert drafting.rests == speculator.counts.rests > 0


def test_what_was_right_and_wrong_is_told_to_the_row(speculator: Speculator) -> None:
    rows = opened(speculator, [row_of(REPEATED), row_of(noise(3))])
    drafts = speculator.propose(rows)
    assert drafts is not None
    right: list[tuple[int, None]] = [(5, None), (6, None), (0, None)]
    speculator.learn(rows, [Draws(right, len(drafts[0])), Draws([(1, None)], 0)])
    told = rows[0][1].drafting
    assert told is not None
    assert (told.drafted, told.accepted, told.checks) == (len(drafts[0]), 2, 1)
    assert speculator.counts == SpeculationCounts(1, len(drafts[0]), 2, 0, 0)
