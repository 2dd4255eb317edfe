"""What a grammar leaves no choice of is fed at once, and nothing but the number of steps is different."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from mlx_serving.core.generation import SamplingParams, Structure
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.worker.forced_runs import ForcedRuns
from mlx_serving.worker.loading.loaded_model import LoadedModel

from ..tiny_models import token_ids
from .bench import POLICY, Bench, Stream, load

SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 4},
        "kind_of_animal": {"enum": ["cat", "crocodile"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["first_name", "kind_of_animal", "age"],
    "additionalProperties": False,
}
FORM = Structure("json_schema", SCHEMA)
GREEDY = SamplingParams(max_tokens=100)
Asked: TypeAlias = Sequence[tuple[SamplingParams, Structure | None]]
SAMPLED = SamplingParams(
    max_tokens=100, temperature=1.0, seed=3, repetition_penalty=1.3, repetition_context_size=7, presence_penalty=0.4
)


@pytest.fixture(scope="module")
def plain(llama: Path) -> LoadedModel:
    return load(llama)


@contextmanager
def bench(model: LoadedModel, policy: SchedulerPolicy = POLICY) -> Generator[Bench]:
    made = Bench(model, policy)
    try:
        yield made
    finally:
        made.close()


def answers(model: LoadedModel, asked: Asked, policy: SchedulerPolicy = POLICY) -> tuple[list[Stream], int]:
    """Of prompts of different lengths, in one crowd; and the steps that it took."""
    with bench(model, policy) as crowd:
        streams = [
            crowd.start(f"s{number}", "abcdefgh"[: number + 3], params, structure=form)
            for number, (params, form) in enumerate(asked)
        ]
        crowd.finish()
        load = crowd.scheduler.load()
        assert (load.kv_held_bytes, load.kv_reserved_bytes, load.running) == (0, 0, 0)
        return streams, load.done.steps


def one_by_one(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel, asked: Asked, policy: SchedulerPolicy = POLICY
) -> tuple[list[Stream], int]:
    with monkeypatch.context() as patched:
        patched.setattr(ForcedRuns, "of", staticmethod(lambda rows: None))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        return answers(model, asked, policy)


def same(streams: list[Stream], expected: list[Stream]) -> None:
    assert [stream.tokens for stream in streams] == [stream.tokens for stream in expected]
    assert [stream.text for stream in streams] == [stream.text for stream in expected]
    for stream, other in zip(streams, expected, strict=True):
        assert stream.completed.finish_reason == other.completed.finish_reason
        assert stream.completed.stats.tokens_generated == other.completed.stats.tokens_generated


@pytest.mark.parametrize("name", ["llama", "qwen3", "quantised", "gemma3", "lfm2", "mamba", "llama4"])
def test_answers_are_the_same_as_one_by_one(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Alone and in a crowd with others that have a form, and that have none."""
    model = load(request.getfixturevalue(name))
    free = replace(SAMPLED, max_tokens=30)
    for asked in (
        [(GREEDY, FORM)],
        [(SAMPLED, FORM)],
        [(GREEDY, FORM), (free, None), (SAMPLED, FORM), (GREEDY, Structure("regex", "abcdefghi|[x-z]{4}"))],
    ):
        streams, _ = answers(model, asked)
        expected, _ = one_by_one(monkeypatch, model, asked)
        same(streams, expected)


def test_a_row_takes_few_steps_for_what_it_must_say(monkeypatch: pytest.MonkeyPatch, plain: LoadedModel) -> None:
    [stream], steps = answers(plain, [(GREEDY, FORM)])
    _, single = one_by_one(monkeypatch, plain, [(GREEDY, FORM)])
    forced = sum(map(len, ('{"first_name": "', '", "kind_of_animal": "c', '", "age": ')))
    assert single > len(stream.tokens)
    assert steps < single - forced + 10


@pytest.mark.parametrize("most", range(1, 40, 3))
def test_max_tokens_cut_a_run_where_they_would_cut_it_anyway(
    monkeypatch: pytest.MonkeyPatch, plain: LoadedModel, most: int
) -> None:
    asked = [(replace(GREEDY, max_tokens=most), FORM), (replace(GREEDY, max_tokens=41 - most), FORM)]
    streams, _ = answers(plain, asked)
    expected, _ = one_by_one(monkeypatch, plain, asked)
    same(streams, expected)
    assert len(streams[0].tokens) == most


@pytest.mark.parametrize("stop", ["name", "_", "animal", '"age'])
def test_a_stop_string_ends_an_answer_within_a_run(
    monkeypatch: pytest.MonkeyPatch, plain: LoadedModel, stop: str
) -> None:
    asked = [(replace(GREEDY, stop=(stop,)), FORM), (GREEDY, FORM)]
    streams, _ = answers(plain, asked)
    expected, _ = one_by_one(monkeypatch, plain, asked)
    same(streams, expected)
    assert streams[0].completed.stop == stop


def test_rows_with_rules_of_their_own_are_asked(monkeypatch: pytest.MonkeyPatch, plain: LoadedModel) -> None:
    """Who wants log-probabilities gets those of every token; a ban on what a grammar forces still fails the stream."""
    asked = [(replace(GREEDY, logprobs=1), FORM)]
    _, steps = answers(plain, asked)
    _, single = one_by_one(monkeypatch, plain, asked)
    assert steps == single
    banned = replace(GREEDY, banned_token_ids=tuple(token_ids("k")))
    [stream], _ = answers(plain, [(banned, FORM)])
    assert "leaves no token that structure allows" in stream.failed.error.message


def test_a_preempted_row_goes_on_behind_its_run(monkeypatch: pytest.MonkeyPatch, plain: LoadedModel) -> None:
    """Memory for two of three."""
    policy = replace(POLICY, kv_budget_bytes=plain.kv_bytes_per_token * 170)
    asked = [(replace(SAMPLED, seed=seed), FORM) for seed in range(3)]
    streams, _ = answers(plain, asked, policy)
    expected, _ = one_by_one(monkeypatch, plain, asked)
    same(streams, expected)


def test_a_paused_row_goes_on_behind_its_run(plain: LoadedModel) -> None:
    [expected], _ = answers(plain, [(SAMPLED, FORM)])
    for steps in range(1, 12):
        with bench(plain) as crowd:
            other = crowd.start("other", "x", GREEDY)
            stream = crowd.start("s0", "abc", SAMPLED, structure=FORM)
            crowd.step(steps)
            crowd.pause("s0")
            crowd.step(3)
            crowd.generation.resume("s0")
            crowd.finish()
            assert stream.tokens == expected.tokens
            assert other.end is not None
