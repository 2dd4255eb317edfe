"""What each sampling parameter does: on known probabilities, and on sequences of a real model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.worker.sampling.row import SamplingRow, TokenRules
from mlx_serving.worker.sampling.sampler import BatchSampler

from ...tiny_models import EOS, VOCABULARY, token_ids
from ..bench import Bench, load
from . import reference_sampler as reference
from .reference_sampler import Place

T = TypeVar("T")

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
        max_tokens=50,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )


def row(
    sampling: ResolvedSampling, *, seed: int = 0, prompt: Sequence[int] = (), drawn: Sequence[int] = ()
) -> SamplingRow:
    """A sequence that was given the tokens `drawn` and fed all of them but the last."""
    return SamplingRow(sampling, seed, prompt, list(drawn), len(drawn))


def choices(
    rows: Sequence[SamplingRow], logits: Sequence[Sequence[float]] | mx.array, inputs: Sequence[int] | None = None
) -> list[int]:
    """One step of a new sampler; `inputs` are what the rows were fed."""
    logits = logits if isinstance(logits, mx.array) else mx.array([list(one) for one in logits])
    sampler = BatchSampler(rows, logits.shape[-1])
    launched = sampler(logits, mx.array(list(inputs or [0] * len(rows)), dtype=mx.uint32))
    return [token for token, _ in launched.read()]


def drawn(sampling: ResolvedSampling, seed: int = 0) -> Counter[int]:
    """How often each token came in many draws from `PROBABILITIES`, at as many positions of one sequence."""
    rows = [replace(row(sampling, seed=seed), position=position) for position in range(DRAWS)]
    return Counter(choices(rows, mx.broadcast_to(mx.log(mx.array([PROBABILITIES])), (DRAWS, len(PROBABILITIES)))))


def test_temperature_0_takes_the_likeliest_token() -> None:
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
    logits = mx.log(mx.array([PROBABILITIES]))
    sampler = BatchSampler([row(resolved(), seed=3)], 5)
    going_on = [sampler(logits, mx.array([0])).read()[0][0] for _ in range(20)]
    one = [choices([replace(row(resolved(), seed=3), position=position)], logits)[0] for position in range(20)]
    assert one == going_on
    assert len(set(going_on)) > 1


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
def test_a_penalty_turns_the_choice_from_what_was_drawn(sampling: ResolvedSampling) -> None:
    cold = replace(sampling, temperature=0.0)
    logits = [[1.0, 0.5, 0.2]]
    assert choices([row(cold, prompt=[1], drawn=[2])], logits, [2]) == [0]
    assert choices([row(cold, prompt=[2], drawn=[0])], logits, [0]) == [1]


def penalised(sampling: ResolvedSampling, logits: Sequence[float], one: SamplingRow, fed: int) -> list[float]:
    """The logits after the penalties, read off the bias that a token needs to be chosen over one that is not penalised.

    Token 0 is never seen; its bias is moved until it draws level.
    """
    levels: list[float] = []
    for token in range(1, len(logits)):
        low, high = -60.0, 60.0
        for _ in range(30):
            middle = (low + high) / 2
            bias = {0: middle - logits[0]} | {other: -100.0 for other in range(1, len(logits)) if other != token}
            tried = replace(one, sampling=replace(sampling, temperature=0.0, logit_bias=bias), drawn=list(one.drawn))
            low, high = (middle, high) if choices([tried], [logits], [fed]) == [token] else (low, middle)
        levels.append(round((low + high) / 2, 3))
    return levels


def test_the_frequency_penalty_grows_with_every_repetition() -> None:
    frequency, presence = resolved(frequency_penalty=0.5), resolved(presence_penalty=0.5)
    once, thrice = row(frequency, prompt=[2], drawn=[1]), row(frequency, prompt=[2], drawn=[1, 1, 1])
    assert penalised(frequency, [0.0, 0.0, 0.0], once, 1) == [-0.5, 0.0]
    assert penalised(frequency, [0.0, 0.0, 0.0], thrice, 1) == [-1.5, 0.0]
    assert penalised(presence, [0.0, 0.0, 0.0], once, 1) == [-0.5, 0.0]
    assert penalised(presence, [0.0, 0.0, 0.0], thrice, 1) == [-0.5, 0.0]


def test_the_repetition_penalty_lowers_positive_and_negative_logits() -> None:
    repetition = resolved(repetition_penalty=2.0)
    assert penalised(repetition, [0.0, 4.0, -4.0, 1.0], row(repetition, prompt=[1], drawn=[2]), 2) == [2.0, -8.0, 1.0]


def test_presence_and_frequency_count_the_answer_only_and_repetition_the_prompt_too() -> None:
    """The first thing fed is the prompt's last token: no part of the answer."""
    for sampling in (resolved(presence_penalty=1.0), resolved(frequency_penalty=1.0)):
        assert penalised(sampling, [0.0, 0.0, 0.0], row(sampling, prompt=[1, 2]), 2) == [0.0, 0.0]
    repetition = resolved(repetition_penalty=2.0)
    assert penalised(repetition, [0.0, 1.0, 1.0, 1.0], row(repetition, prompt=[1, 2]), 2) == [0.5, 0.5, 1.0]


@pytest.mark.parametrize("read", [True, False], ids=["read by the host", "in flight"])
def test_the_token_fed_is_counted_once_whether_or_not_the_host_has_read_it(read: bool) -> None:
    """A sampler is made anew when the membership changes, with the last token in `drawn` or not yet."""
    frequency = resolved(frequency_penalty=1.0)
    one = SamplingRow(frequency, 0, [2], [1, 1] if read else [1], position=2)
    assert penalised(frequency, [0.0, 0.0, 0.0], one, 1) == [-2.0, 0.0]


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.sampled_from(["presence", "frequency", "repetition"]))
def test_penalties_do_not_see_membership_change(rebuilt: list[bool], kind: str) -> None:
    """The host reads one step late, and a sampler is made anew at any step: the tokens are those of a single one."""
    sampling = {
        "presence": resolved(temperature=0.0, presence_penalty=0.7),
        "frequency": resolved(temperature=0.0, frequency_penalty=0.3),
        "repetition": resolved(temperature=0.0, repetition_penalty=1.5),
    }[kind]
    logits = mx.array([[1.3, 1.0, 0.9, 0.8, 0.1]])

    def tokens(rebuilt: Sequence[bool]) -> list[int]:
        one = SamplingRow(sampling, 0, [0, 3])
        sampler, fed, given = BatchSampler([one], 5), 3, list[int]()
        for anew in rebuilt:
            sampler = BatchSampler([one], 5) if anew else sampler
            [(token, _)] = sampler(logits, mx.array([fed], dtype=mx.uint32)).read()
            one.drawn[:] = given  # all but the one launched now
            given.append(token)
            fed = token
        return given

    assert tokens(rebuilt) == tokens([False] * len(rebuilt))
    assert len(set(tokens(rebuilt))) > 1


SMALL = 12
LARGE = 4200
TOKENS = st.integers(0, SMALL - 1)


@st.composite
def places(draw: st.DrawFn) -> Place:
    """A sequence somewhere in its answer, that asks for any of everything; tokens are below `SMALL`."""

    def rarely(values: st.SearchStrategy[T], otherwise: T) -> T:
        return draw(values) if draw(st.integers(0, 3)) == 0 else otherwise

    sampling = ResolvedSampling(
        max_tokens=50,
        temperature=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.0])),
        top_p=rarely(st.sampled_from([0.3, 0.8, 0.95]), 1.0),
        top_k=rarely(st.integers(1, 20), 0),
        min_p=rarely(st.sampled_from([0.05, 0.5]), 0.0),
        typical_p=rarely(st.sampled_from([0.3, 0.9]), 1.0),
        xtc_probability=rarely(st.sampled_from([0.5, 1.0]), 0.0),
        xtc_threshold=draw(st.sampled_from([0.0, 0.1, 0.4])),
        repetition_penalty=rarely(st.sampled_from([0.5, 1.3, 4.0]), 1.0),
        repetition_context_size=draw(st.integers(0, 6)),
        presence_penalty=rarely(st.sampled_from([-1.0, 1.5]), 0.0),
        frequency_penalty=rarely(st.sampled_from([-0.5, 0.7]), 0.0),
        logit_bias=rarely(st.dictionaries(TOKENS, st.sampled_from([-5.0, 3.0]), max_size=3), dict[int, float]()),
        banned_token_ids=rarely(st.lists(TOKENS, max_size=4).map(tuple), ()),
        allowed_token_ids=rarely(st.lists(TOKENS, min_size=1, max_size=9).map(tuple), None),
        min_tokens=rarely(st.integers(0, 6), 0),
    )
    rules = TokenRules(
        ends=draw(st.frozensets(TOKENS, max_size=3)),
        spared=draw(st.frozensets(TOKENS, max_size=2)),
        banned=rarely(st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple), ()),
    )
    prompt, answer = draw(st.lists(TOKENS, min_size=1, max_size=8)), draw(st.lists(TOKENS, max_size=8))
    return Place(sampling, draw(st.integers(0, 100)), tuple(prompt), tuple(answer), rules)


def row_at(place: Place, *, read: bool) -> SamplingRow:
    """The row as it is when the last token of its answer has, or has not, come to the host."""
    answer = list(place.answer)
    return SamplingRow(
        place.sampling, place.seed, place.prompt, answer if read else answer[:-1], len(answer), place.rules
    )


def fed(place: Place) -> int:
    return place.answer[-1] if place.answer else place.prompt[-1]


@settings(max_examples=150, deadline=None)
@given(
    crowd=st.lists(st.tuples(places(), st.booleans()), min_size=1, max_size=5),
    size=st.sampled_from([SMALL, LARGE]),
    seed=st.integers(0, 10_000),
)
def test_every_row_of_any_crowd_gets_what_the_reference_gives_it_alone(
    crowd: list[tuple[Place, bool]], size: int, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(size=(len(crowd), size)).astype(np.float32) * 3
    possible = [reference.edited(row, place) for row, (place, _) in zip(logits, crowd, strict=True)]
    assume(all(np.isfinite(row).any() for row in possible))
    rows = [row_at(place, read=read) for place, read in crowd]
    tokens = choices(rows, mx.array(logits), [fed(place) for place, _ in crowd])
    for token, row, (place, _) in zip(tokens, logits, crowd, strict=True):
        assert token in reference.choices(row, place)
        assert np.isfinite(reference.edited(row, place)[token])


@settings(max_examples=60, deadline=None)
@given(
    place=places(),
    rebuilt=st.lists(st.booleans(), min_size=8, max_size=8),
    company=st.lists(places(), max_size=2),
    seed=st.integers(0, 10_000),
)
def test_no_parameter_sees_membership_change(
    place: Place, rebuilt: list[bool], company: list[Place], seed: int
) -> None:
    """The host reads one step late, and a sampler is made anew at any step, with others or without: the answer is
    that of a sampler which is alone and made once. A sequence that was interrupted goes on like that, too."""
    logits = np.random.default_rng(seed).normal(size=(8, SMALL)).astype(np.float32) * 2
    assume(all(np.isfinite(reference.edited(row, replace(place, answer=()))).any() for row in logits))

    def answer(rebuilt: Sequence[bool], company: Sequence[Place]) -> list[int]:
        rows = [row_at(replace(each, answer=()), read=True) for each in (place, *company)]
        sampler, inputs = BatchSampler(rows, SMALL), [each.prompt[-1] for each in (place, *company)]
        given: list[list[int]] = []
        for step, anew in enumerate(rebuilt):
            sampler = BatchSampler(rows, SMALL) if anew else sampler
            launched = sampler(mx.array(np.stack([logits[step]] * len(rows))), mx.array(inputs, dtype=mx.uint32))
            for row, token in zip(rows, inputs, strict=True):
                row.drawn += [token] if step > 0 else []  # all but the one launched now
            inputs = [token for token, _ in launched.read()]
            given.append(inputs)
        return [tokens[0] for tokens in given]

    alone = answer([False] * len(rebuilt), ())
    assert answer(rebuilt, company) == alone
    for row, token, before in zip(logits, alone, range(len(alone)), strict=True):
        assert token in reference.choices(row, replace(place, answer=tuple(alone[:before])))


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


def test_rows_of_different_parameters_get_what_each_gets_alone() -> None:
    """Drawn, greedy, filtered, biased and penalised in one launch."""
    samplings = [
        resolved(temperature=0.0),
        resolved(),
        resolved(temperature=1.7, top_k=3),
        resolved(top_p=0.6),
        resolved(min_p=0.3, temperature=0.5),
        resolved(temperature=0.0, repetition_penalty=1.4),
        resolved(presence_penalty=1.0, frequency_penalty=-0.5),
        replace(resolved(temperature=0.0), logit_bias={3: 9.0, 4: -1.0}),
        replace(resolved(temperature=2.0, top_k=2, top_p=0.9, min_p=0.01), logit_bias={0: -100.0}),
    ]
    logits = mx.random.normal((len(samplings), 40), key=mx.random.key(1)) * 2
    fed = [index % 40 for index in range(len(samplings))]

    def rows() -> list[SamplingRow]:
        return [row(one, seed=index, prompt=[1, 2], drawn=[3, fed[index]]) for index, one in enumerate(samplings)]

    alone = [choices([one], logits[index : index + 1], [fed[index]]) for index, one in enumerate(rows())]
    assert choices(rows(), logits, fed) == [token for [token] in alone]
    assert len({token for [token] in alone}) > 3


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        pytest.param(resolved(), PROBABILITIES, id="as they are"),
        pytest.param(resolved(top_k=2), (0.4 / 0.7, 0.3 / 0.7), id="top_k"),
        pytest.param(resolved(top_p=0.75), (0.4 / 0.9, 0.3 / 0.9, 0.2 / 0.9), id="top_p takes the one that reaches it"),
        pytest.param(resolved(min_p=0.14), (0.4 / 0.96, 0.3 / 0.96, 0.2 / 0.96, 0.06 / 0.96), id="min_p"),
        pytest.param(
            resolved(temperature=0.5), [p * p / sum(q * q for q in PROBABILITIES) for p in PROBABILITIES], id="cold"
        ),
        pytest.param(
            resolved(temperature=2.0),
            [math.sqrt(p) / sum(math.sqrt(q) for q in PROBABILITIES) for p in PROBABILITIES],
            id="hot",
        ),
        pytest.param(
            replace(resolved(), logit_bias={0: -100.0, 4: math.log(0.36 / 0.04)}),
            (0.0, 0.3 / 0.92, 0.2 / 0.92, 0.06 / 0.92, 0.36 / 0.92),
            id="biased",
        ),
    ],
)
def test_draws_have_the_expected_shares(sampling: ResolvedSampling, expected: Sequence[float]) -> None:
    """Within four standard deviations of 4,000 draws with fixed seeds."""
    count = 4000
    rows = [row(sampling, seed=seed) for seed in range(count)]
    counts = Counter(choices(rows, mx.broadcast_to(mx.log(mx.array([PROBABILITIES])), (count, len(PROBABILITIES)))))
    for token in range(len(PROBABILITIES)):
        share = expected[token] if token < len(expected) else 0.0
        assert abs(counts[token] - count * share) <= 4 * math.sqrt(count * share * (1 - share)), token


@pytest.mark.parametrize("sampling", [resolved(), resolved(top_p=0.99), resolved(temperature=0.0)])
def test_what_is_masked_is_never_chosen(sampling: ResolvedSampling) -> None:
    """First, in the middle and last; one seed a row."""
    masked = [-math.inf, 1.0, -math.inf, -math.inf, 0.5, -math.inf]
    assert set(choices([row(sampling, seed=seed) for seed in range(DRAWS)], [masked] * DRAWS)) <= {1, 4}


@pytest.mark.parametrize("poison", [math.nan, -math.inf, math.inf], ids=str)
@pytest.mark.parametrize("sampling", [resolved(), resolved(top_p=0.9, top_k=4), resolved(temperature=0.0)])
def test_a_row_without_a_choice_leaves_the_others_alone(sampling: ResolvedSampling, poison: float) -> None:
    good = [0.1, 0.9, 0.3, 0.2, 0.4]
    rows = [row(sampling, seed=seed) for seed in (1, 2, 3)]
    first, middle, last = choices(rows, [good, [poison] * 5, good])
    assert 0 <= middle < 5
    assert [[first], [last]] == [choices([row(sampling, seed=seed)], [good]) for seed in (1, 3)]


def test_a_top_k_beyond_any_vocabulary_filters_nothing() -> None:
    assert drawn(resolved(top_k=1 << 80)) == drawn(resolved())


def test_logits_of_16_bits_are_drawn_from_in_32() -> None:
    """A thousand equal tokens: cumulative shares of 16 bits would reach few of them."""
    rows = [row(resolved(), seed=seed) for seed in range(1000)]
    assert len(set(choices(rows, mx.zeros((1000, 1000), dtype=mx.bfloat16)))) > 500
