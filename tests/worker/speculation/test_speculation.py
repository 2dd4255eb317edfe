"""Drafted or not, an answer is the same; only the number of steps is different."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_serving.core.generation import SamplingParams, Structure
from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.speculation.pass_cost import PassCost
from mlx_serving.core.speculation.policy import Drafting
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.speculation.drafter import DraftModel, Wanted
from mlx_serving.worker.speculation.model_drafter import ModelDrafter, weight_bytes
from mlx_serving.worker.speculation.speculator import Speculator

from ...tiny_models import EOS, SPELLED, make_llama, token_ids
from ..bench import POLICY, Bench, Stream, load

NGRAM = Wanted("ngram")
ENDLESS = {EOS: -100.0}
GREEDY = SamplingParams(max_tokens=40, logit_bias=ENDLESS)
SAMPLED = SamplingParams(
    max_tokens=40,
    temperature=1.0,
    seed=3,
    top_p=0.95,
    repetition_penalty=1.2,
    repetition_context_size=7,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias=ENDLESS,
    bad_words=("ab", "q"),
    typical_p=0.98,
    xtc_probability=0.3,
    xtc_threshold=0.05,
)
FORM = Structure("regex", "[a-f]{30}")
LONG_NAME = Structure("regex", "a name that is long: [0-9]{9}")
Asked = Sequence[tuple[str, SamplingParams]]


@pytest.fixture(scope="module")
def model(llama: Path) -> LoadedModel:
    return load(llama)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Of the same vocabulary, and of another opinion."""
    return load(make_llama(tmp_path_factory.mktemp("draft") / "llama", seed=9))


def drafting_with(model: LoadedModel) -> Wanted:
    return Wanted("draft", 6, DraftModel(model.model_id, model.model))


class DearPass(PassCost):
    """Whose cost is what a test says, however fast the machine is."""

    def learn(self, tokens: int, duration_s: float) -> None:
        assert tokens > 0
        assert duration_s > 0


def eager_bench(
    model: LoadedModel, policy: SchedulerPolicy = POLICY, *, prefix_policy: PrefixCachePolicy | None = None
) -> Bench:
    """Passes are so dear that whatever may be right is tried."""
    model.renew_runner()
    runner = model.runner
    runner.speculator = Speculator(
        ModelDrafter, able=runner.speculator.able, weight_bytes=100 * weight_bytes(model.model), cost=DearPass(10_000)
    )
    return Bench(model, policy, prefix_policy=prefix_policy)


def answers(
    model: LoadedModel, asked: Asked, speculation: Wanted | None, policy: SchedulerPolicy = POLICY
) -> tuple[list[Stream], int]:
    """Of all in one crowd; and the steps that it took."""
    bench = eager_bench(model, policy)
    streams = [
        bench.start(f"s{number}", prompt, params, speculation=speculation)
        for number, (prompt, params) in enumerate(asked)
    ]
    bench.finish()
    load = bench.scheduler.load()
    assert (load.kv_held_bytes, load.kv_reserved_bytes, load.running) == (0, 0, 0)
    return streams, load.done.steps


def same(streams: Sequence[Stream], expected: Sequence[Stream]) -> None:
    assert [stream.tokens for stream in streams] == [stream.tokens for stream in expected]
    assert [stream.text for stream in streams] == [stream.text for stream in expected]
    for stream, other in zip(streams, expected, strict=True):
        assert stream.completed.finish_reason == other.completed.finish_reason
        assert stream.completed.stop == other.completed.stop
        assert stream.completed.stats.tokens_generated == other.completed.stats.tokens_generated


class Oracle:
    """Drafts what `expected` says, but for the places in an answer where it is `wrong`."""

    def __init__(self, asked: Asked, expected: Sequence[Stream], wrong: Callable[[int], bool]) -> None:
        self._answers = {tuple(token_ids(asked[n][0])): stream.tokens for n, stream in enumerate(expected)}
        self._wrong = wrong

    def __call__(self, drafting: Drafting, prompt: Sequence[int], answer: Sequence[int], most: int) -> list[int]:
        told = self._answers[tuple(prompt)]
        if list(answer) != told[: len(answer)]:
            return []
        return [
            (token + 1) % 256 if self._wrong(place) else token
            for place, token in enumerate(told[len(answer) : len(answer) + most], start=len(answer))
        ]


WRONG: dict[str, Callable[[int], bool]] = {
    "never": lambda place: False,
    "now and then": lambda place: place % 7 == 5,
    "often": lambda place: place % 3 == 1,
}


def consult(
    monkeypatch: pytest.MonkeyPatch, asked: Asked, expected: Sequence[Stream], wrong: Callable[[int], bool]
) -> None:
    oracle = Oracle(asked, expected, wrong)
    monkeypatch.setattr(
        Drafting,
        "look_up",
        lambda drafting, prompt, answer, most: oracle(drafting, prompt, answer, most),  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    )
    monkeypatch.setattr(Drafting, "_learn", lambda *_: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]


def drafted(streams: Sequence[Stream]) -> tuple[int, int]:
    stats = [stream.completed.stats for stream in streams]
    return sum(one.drafted_tokens for one in stats), sum(one.accepted_tokens for one in stats)


CROWD = [
    ("abcdefgh"[: 3 + number], params) for number, params in enumerate([GREEDY, SAMPLED, replace(SAMPLED, seed=8)])
]


@pytest.mark.parametrize("name", ["llama", "qwen3", "quantised"])
@pytest.mark.parametrize("wrong", WRONG)
def test_answers_are_the_same_however_good_the_drafts_are(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, wrong: str
) -> None:
    """Alone and in a crowd, greedy and sampled by all the rules that there are."""
    model = load(request.getfixturevalue(name))
    for asked in ([CROWD[0]], [CROWD[1]], CROWD):
        expected, plainly = answers(model, asked, None)
        with monkeypatch.context() as patched:
            consult(patched, asked, expected, WRONG[wrong])
            streams, steps = answers(model, asked, NGRAM)
        same(streams, expected)
        tokens, right = drafted(streams)
        if wrong == "never":
            assert tokens == right
            assert steps < plainly / 2
        else:
            assert 0 < right < tokens
            assert steps < plainly


def test_a_hundred_greedy_answers_are_the_same(model: LoadedModel) -> None:
    params = replace(GREEDY, max_tokens=48)
    asked = [(f"{number} to {number % 7}: {'ab' * (number % 5)}", params) for number in range(100)]
    policy = replace(POLICY, max_queue=200)
    expected, _ = answers(model, asked, None, policy)
    streams, _ = answers(model, asked, NGRAM, policy)
    same(streams, expected)
    tokens, right = drafted(streams)
    assert 0 < right <= tokens


@pytest.mark.parametrize("most", range(1, 14))
def test_max_tokens_end_an_answer_where_they_do_anyway(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel, most: int
) -> None:
    asked = [("abcde", replace(GREEDY, max_tokens=most)), ("xy", replace(SAMPLED, max_tokens=14 - most))]
    expected, _ = answers(model, asked, None)
    consult(monkeypatch, asked, expected, WRONG["never"])
    streams, _ = answers(model, asked, NGRAM)
    same(streams, expected)
    assert [len(stream.tokens) for stream in streams] == [most, 14 - most]


@pytest.mark.parametrize("wrong", WRONG)
def test_the_scheduler_counts_what_was_drafted(monkeypatch: pytest.MonkeyPatch, model: LoadedModel, wrong: str) -> None:
    """It plans the memory of rows by the tokens that they have."""
    params = replace(GREEDY, max_tokens=40)
    [expected], _ = answers(model, [("abcde", params)], None)
    consult(monkeypatch, [("abcde", params)], [expected], WRONG[wrong])
    bench = eager_bench(model)
    stream = bench.start("s", "abcde", params, speculation=NGRAM)
    while stream.end is None:
        bench.step()
        held = bench.scheduler.load().kv_held_bytes / model.kv_bytes_per_token
        if stream.tokens and held:  # else it begins, or all that is left is to read its last token
            assert abs(held - 5 - len(stream.tokens)) <= 1
    assert bench.scheduler.load().done.decoded_tokens == len(stream.tokens) - 1
    assert drafted([stream])[1] > 0


@pytest.mark.parametrize("stop", ["jkl", "z", "é", "€🙈"])
@pytest.mark.parametrize("min_tokens", [0, 14])
def test_a_stop_string_ends_an_answer_within_a_draft(
    monkeypatch: pytest.MonkeyPatch, speller: Path, stop: str, min_tokens: int
) -> None:
    model = load(speller)
    asked = [
        ("c", SamplingParams(max_tokens=80, stop=(stop,), min_tokens=min_tokens)),
        ("f", SamplingParams(max_tokens=80)),
    ]
    expected, plainly = answers(model, asked, None)
    consult(monkeypatch, asked[1:], expected[1:], WRONG["never"])
    monkeypatch.setattr(Drafting, "look_up", _spell)
    streams, steps = answers(model, asked, NGRAM)
    same(streams, expected)
    assert steps < plainly


def _spell(drafting: Drafting, prompt: Sequence[int], answer: Sequence[int], most: int) -> list[int]:
    """The whole of what a speller writes, and its end, and on behind that."""
    text = token_ids(SPELLED)
    start = text.index(prompt[-1]) + 1 + len(answer)
    return [*text[start:], EOS, *text][:most]


def test_the_end_of_the_turn_within_a_draft_ends_an_answer(monkeypatch: pytest.MonkeyPatch, speller: Path) -> None:
    model = load(speller)
    asked = [("c", SamplingParams(max_tokens=80)), ("z", SamplingParams(max_tokens=80, min_tokens=20))]
    expected, plainly = answers(model, asked, None)
    monkeypatch.setattr(Drafting, "look_up", _spell)
    streams, steps = answers(model, asked, NGRAM)
    same(streams, expected)
    assert streams[0].text == SPELLED[3:]
    assert steps < plainly


def test_log_probabilities_are_those_of_one_by_one(monkeypatch: pytest.MonkeyPatch, model: LoadedModel) -> None:
    asked = [("abc", replace(GREEDY, logprobs=2)), ("de", replace(SAMPLED, logprobs=0))]
    found: list[list[float]] = []
    expected, _ = answers(model, asked, None)
    for speculation in (None, NGRAM):
        consult(monkeypatch, asked, expected, WRONG["often"])
        bench = eager_bench(model)
        for number, (prompt, params) in enumerate(asked):
            bench.start(f"s{number}", prompt, params, speculation=speculation)
        rows = [row for _ in range(120) for row in bench.step()]
        for stream_id in ("s0", "s1"):
            named = [one for row in rows if row.stream_id == stream_id for one in row.logprobs or ()]
            assert len(named) == 40
            found.append([one.chosen.logprob for one in named] + [top.logprob for one in named for top in one.top])
    for plainly, checked in zip(found[:2], found[2:], strict=True):
        assert checked == pytest.approx(plainly, abs=1e-4)


def test_rows_with_a_form_and_others_go_on_beside(monkeypatch: pytest.MonkeyPatch, model: LoadedModel) -> None:
    """A form is followed one token at a time, or as far as it leaves no choice, in the passes that check drafts."""
    asked = [*CROWD, ("abcdefg", GREEDY), ("xyz", replace(SAMPLED, seed=5))]
    forms = [
        None,
        None,
        None,
        FORM,
        Structure(
            "json_schema",
            {"type": "object", "properties": {"long_name": {"type": "boolean"}}, "required": ["long_name"]},
        ),
    ]

    def run(speculation: Wanted) -> list[Stream]:
        bench = eager_bench(model)
        streams = [
            bench.start(f"s{number}", *one, structure=form, speculation=Wanted() if number == 1 else speculation)
            for number, (one, form) in enumerate(zip(asked, forms, strict=True))
        ]
        bench.finish()
        bench.close()
        return streams

    expected = run(Wanted())
    consult(monkeypatch, asked, expected, WRONG["now and then"])
    streams = run(NGRAM)
    same(streams, expected)
    told = [stream.completed.stats.speculation for stream in streams]
    assert told == ["ngram", None, "ngram", "structured", "structured"]
    assert drafted(streams[3:]) == (0, 0)
    assert drafted(streams[:1])[1] > 20


def test_caches_in_few_bits_drop_what_was_wrong_as_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = make_llama(tmp_path_factory.mktemp("wide") / "llama", head_dim=32)
    model = load(directory, options=WeightOptions(kv=KvForm(8, 32)))
    expected, plainly = answers(model, CROWD, None)
    consult(monkeypatch, CROWD, expected, WRONG["now and then"])
    streams, steps = answers(model, CROWD, NGRAM)
    same(streams, expected)
    assert steps < plainly


@pytest.mark.parametrize("name", ["gemma3", "lfm2", "mamba"])
def test_models_that_cannot_drop_what_was_wrong_say_so(request: pytest.FixtureRequest, name: str) -> None:
    model = load(request.getfixturevalue(name))
    expected, _ = answers(model, CROWD[:2], None)
    streams, _ = answers(model, CROWD[:2], NGRAM)
    same(streams, expected)
    assert {stream.completed.stats.speculation for stream in streams} == {"unsupported"}


def test_a_paused_row_goes_on_behind_its_draft(monkeypatch: pytest.MonkeyPatch, model: LoadedModel) -> None:
    expected, _ = answers(model, CROWD, None)
    consult(monkeypatch, CROWD, expected, WRONG["now and then"])
    for steps in range(1, 14):
        bench = eager_bench(model)
        streams = [bench.start(f"s{n}", *one, speculation=NGRAM) for n, one in enumerate(CROWD)]
        bench.step(steps)
        bench.pause("s1")
        bench.step(2)
        bench.generation.resume("s1")
        bench.finish()
        same(streams, expected)


@pytest.mark.parametrize("room", [100, 120, 140])
def test_a_preempted_row_goes_on_behind_its_draft(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel, room: int
) -> None:
    policy = replace(POLICY, kv_budget_bytes=model.kv_bytes_per_token * room)
    asked = [
        ("abcdefgh"[:length], replace(params, max_tokens=60))
        for length, (_, params) in zip((4, 5, 6), CROWD, strict=True)
    ]
    expected, _ = answers(model, asked, None, policy)
    consult(monkeypatch, asked, expected, WRONG["now and then"])
    streams, _ = answers(model, asked, NGRAM, policy)
    same(streams, expected)


def test_a_stream_that_is_aborted_while_its_draft_is_checked_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel
) -> None:
    expected, _ = answers(model, CROWD, None)
    consult(monkeypatch, CROWD, expected, WRONG["now and then"])
    for steps in range(1, 8):
        bench = eager_bench(model)
        streams = [bench.start(f"s{n}", *one, speculation=NGRAM) for n, one in enumerate(CROWD)]
        bench.step(steps)
        row = bench.generation.abort("s0")
        assert row is not None
        late = bench.start("late", *CROWD[0], speculation=NGRAM)
        bench.finish()
        same(streams[1:], expected[1:])
        same([late], expected[:1])


def test_batches_that_give_back_memory_while_a_draft_is_checked_keep_it(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel
) -> None:
    expected, _ = answers(model, CROWD, None)
    consult(monkeypatch, CROWD, expected, WRONG["now and then"])
    bench = eager_bench(model)
    model.runner.spare(0)
    streams = [bench.start(f"s{n}", *one, speculation=NGRAM) for n, one in enumerate(CROWD)]
    while not bench.generation.is_idle:
        model.runner.shrink()
        bench.step()
    same(streams, expected)


KINDS = ("start", "step", "step", "step", "pause", "resume", "abort", "shrink")
EVENTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3)), min_size=4, max_size=40)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, wrong=st.sampled_from([2, 3, 7, 100]), room=st.sampled_from([None, 150]))
def test_whatever_happens_in_between_answers_are_the_same(
    model: LoadedModel, events: list[tuple[str, int]], wrong: int, room: int | None
) -> None:
    """Rows that draft and rows that do not come, wait, leave and lose their memory."""
    asked = [*CROWD, ("abcdef", replace(GREEDY, max_tokens=25))]
    wanted = [NGRAM, drafting_with(model), NGRAM, None]
    budget = None if room is None else room * model.kv_bytes_per_token
    expected, _ = answers(model, asked, None)
    with pytest.MonkeyPatch.context() as patched:
        consult(patched, asked, expected, lambda place: place % wrong == 1)
        bench = eager_bench(model, replace(POLICY, kv_budget_bytes=budget))
        streams: dict[int, Stream] = {}
        aborted: set[int] = set()
        for kind, number in events:
            if kind == "step":
                bench.step(number + 1)
            elif kind == "start" and number not in streams:
                streams[number] = bench.start(f"s{number}", *asked[number], speculation=wanted[number])
            elif kind == "pause":
                bench.pause(f"s{number}")
            elif kind == "resume":
                bench.generation.resume(f"s{number}")
            elif kind == "shrink":
                model.runner.spare(number)
                model.runner.shrink()
            elif kind == "abort" and bench.generation.abort(f"s{number}") is not None:
                aborted.add(number)
        bench.generation.resume_all()
        bench.finish()
    for number, stream in streams.items():
        if number in aborted:
            assert stream.tokens == expected[number].tokens[: len(stream.tokens)]
        else:
            same([stream], [expected[number]])
    load = bench.scheduler.load()
    assert (load.kv_held_bytes, load.kv_reserved_bytes, load.running) == (0, 0, 0)
    assert bench.model.runner.speculator.nbytes == 0


def test_forks_begin_with_the_prompt_of_one_that_drafts(monkeypatch: pytest.MonkeyPatch, model: LoadedModel) -> None:
    asked = [("abcdefgh", replace(SAMPLED, seed=seed)) for seed in range(3)]
    alone = [answers(model, [one], None)[0][0] for one in asked]
    consult(monkeypatch, asked[:1], alone[:1], WRONG["often"])
    bench = eager_bench(model)
    streams = [
        bench.start(f"s{n}", *one, fork_of="s0" if n else None, speculation=NGRAM) for n, one in enumerate(asked)
    ]
    bench.finish()
    same(streams, alone)


def test_what_is_kept_of_an_answer_holds_accepted_tokens_only(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel
) -> None:
    """The next turn begins with prompt and answer as they are, and goes on as it does without anything kept."""
    asked = [("abcdefgh" * 3, replace(GREEDY, max_tokens=60))]
    expected, _ = answers(model, asked, None)
    follow_up = [*token_ids(asked[0][0]), *expected[0].tokens, *token_ids("xyz")]
    fresh = eager_bench(model).run(follow_up, GREEDY)
    consult(monkeypatch, asked, expected, WRONG["often"])
    bench = eager_bench(model, prefix_policy=PrefixCachePolicy())
    first = bench.start("first", *asked[0], speculation=NGRAM)
    bench.finish()
    same([first], expected)
    assert drafted([first])[0] > drafted([first])[1]
    second = bench.run(follow_up, GREEDY)
    assert second.tokens == fresh.tokens
    assert second.completed.stats.cached_tokens >= 64


def test_what_was_drafted_is_counted_when_its_model_is_gone(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel
) -> None:
    expected, _ = answers(model, CROWD, None)
    consult(monkeypatch, CROWD, expected, WRONG["often"])
    bench = eager_bench(model)
    streams = [bench.start(f"s{n}", *one, speculation=NGRAM) for n, one in enumerate(CROWD)]
    bench.finish()
    counts = bench.generation.models.speculation()
    assert (counts.drafted, counts.accepted) == drafted(streams)
    assert 0 < counts.checks <= counts.drafted
    bench.generation.models.remove(model.model_id)
    assert bench.generation.models.speculation() == counts


# -- draft models


def test_a_model_that_drafts_for_itself_is_always_right(model: LoadedModel) -> None:
    """So its drafts are its own draws, whoever joins, leaves and waits meanwhile."""
    asked = [*CROWD, ("abcdefgh" * 50, replace(GREEDY, max_tokens=20)), ("x", replace(SAMPLED, max_tokens=90))]
    expected, plainly = answers(model, asked, None)
    streams, steps = answers(model, asked, drafting_with(model))
    same(streams, expected)
    tokens, right = drafted(streams)
    assert tokens == right > 100
    assert steps < plainly
    assert {stream.completed.stats.speculation for stream in streams} == {"draft"}


def test_a_draft_model_of_another_opinion_changes_nothing(model: LoadedModel, other: LoadedModel) -> None:
    expected, _ = answers(model, CROWD, None)
    streams, _ = answers(model, CROWD, drafting_with(other))
    same(streams, expected)
    tokens, right = drafted(streams)
    assert right < tokens


def test_caches_of_a_draft_model_count_and_go_with_their_sequences(model: LoadedModel) -> None:
    bench = eager_bench(model)
    speculator = bench.model.runner.speculator
    plain = bench.model.runner.cache_bytes
    for number, one in enumerate(CROWD):
        bench.start(f"s{number}", *one, speculation=drafting_with(model))
    bench.step(6)
    assert speculator.nbytes > 0
    assert bench.model.runner.cache_bytes >= plain + speculator.nbytes
    bench.pause("s0")
    bench.generation.resume("s0")
    bench.finish()
    assert speculator.nbytes == 0


@pytest.mark.parametrize("how", ["unloaded", "fails"])
def test_who_loses_its_draft_model_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel, how: str
) -> None:
    expected, _ = answers(model, CROWD, None)
    bench = eager_bench(model)
    speculator = bench.model.runner.speculator
    streams = [bench.start(f"s{n}", *one, speculation=drafting_with(model)) for n, one in enumerate(CROWD)]
    bench.step(5)

    def fail(drafter: ModelDrafter, wishes: object) -> list[list[int]]:
        raise RuntimeError("no such kernel")

    if how == "fails":
        monkeypatch.setattr(ModelDrafter, "propose", fail)
    else:
        speculator.lose(model.model_id)
    late = bench.start("late", *CROWD[0], speculation=drafting_with(model)) if how == "fails" else None
    bench.finish()
    same(streams, expected)
    assert 0 < drafted(streams)[0] < 90
    if late is not None:
        same([late], expected[:1])
        assert late.completed.stats.speculation == "draft_lost"


# -- the distribution


def test_sampled_tokens_are_distributed_as_without_drafts(monkeypatch: pytest.MonkeyPatch, model: LoadedModel) -> None:
    """Of many seeds, the third token of the answer, drafted with the likeliest ones: chi-square against plain decoding
    with other seeds, at the 0.1 % level."""
    asked = [("abc", SamplingParams(max_tokens=5, temperature=0.3, logit_bias=ENDLESS))]
    greedy, _ = answers(model, [("abc", replace(asked[0][1], temperature=0.0))], None)

    def thirds(seeds: range, speculation: Wanted | None) -> tuple[Counter[int], int]:
        bench = eager_bench(model, replace(POLICY, max_num_seqs=32, max_queue=len(seeds)))
        streams = [
            bench.start(f"s{seed}", "abc", replace(asked[0][1], seed=seed), speculation=speculation) for seed in seeds
        ]
        bench.finish()
        return Counter(stream.tokens[2] for stream in streams), drafted(streams)[1]

    plainly, _ = thirds(range(600), None)
    monkeypatch.setattr(
        Drafting,
        "look_up",
        lambda drafting, prompt, answer, most: greedy[0].tokens[len(answer) : len(answer) + most],  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType, reportUnknownMemberType]
    )
    same_seeds, right = thirds(range(600), NGRAM)
    assert same_seeds == plainly
    assert right > 50
    others, _ = thirds(range(10_000, 10_600), NGRAM)
    assert _chi_square(plainly, others) < 1.0


def _chi_square(one: Counter[int], other: Counter[int]) -> float:
    """Two samples of equal size: the statistic over its 99.9 % quantile (Wilson and Hilferty). Rare tokens count as
    one."""
    common = [token for token in one | other if one[token] + other[token] >= 20]
    cells = [(one[token], other[token]) for token in common]
    cells.append((one.total() - sum(a for a, _ in cells), other.total() - sum(b for _, b in cells)))
    cells = [cell for cell in cells if sum(cell)]
    statistic = sum((a - b) ** 2 / (a + b) for a, b in cells)
    freedom = len(cells) - 1
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.0902 * (2 / (9 * freedom)) ** 0.5) ** 3
    return statistic / quantile
