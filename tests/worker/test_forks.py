"""Forks share the computation of their prompt and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.schedule.scheduling import PrefillChunk
from mlx_serving.wire.methods import ModelCapabilities
from mlx_serving.worker.job import Job
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.model_runner import ModelRunner

from ..tiny_models import token_ids
from .bench import POLICY, Bench, load
from .test_model_runner import ARCHITECTURES, GREEDY

PROMPT = "A prompt of more than sixteen tokens."
ENDLESS = SamplingParams(max_tokens=12, logit_bias={258: -100.0})
SAMPLED = replace(ENDLESS, temperature=1.0, top_p=0.95, frequency_penalty=0.3)
TRIMMABLE = ["llama", "qwen3", "quantised"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=TRIMMABLE)
def trimmable(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


def seeded(number: int) -> SamplingParams:
    return ENDLESS if number == 0 else replace(SAMPLED, seed=number)


def alone(model: LoadedModel, params: SamplingParams) -> list[int]:
    return Bench(model).run(PROMPT, params).tokens


def test_forks_give_what_they_give_alone_and_compute_the_prompt_once(model: LoadedModel) -> None:
    expected = [alone(model, seeded(number)) for number in range(4)]
    bench = Bench(model)
    bench.start("0", PROMPT, seeded(0))
    for number in range(1, 4):
        bench.start(str(number), PROMPT, seeded(number), fork_of="0")
    bench.finish()
    assert [bench.streams[str(number)].tokens for number in range(4)] == expected
    # A fork computes the last token of the prompt again, for its logits.
    assert bench.prefilled == len(PROMPT) + 3
    assert list(model.runner.kept) == []


def test_forks_beside_other_sequences_give_what_they_give_alone(model: LoadedModel) -> None:
    expected = [alone(model, seeded(number)) for number in range(3)]
    bench = Bench(model)
    bench.start("before", "Zebras!", ENDLESS)
    bench.step(4)
    bench.start("0", PROMPT, seeded(0))
    bench.start("after", "h", ENDLESS)
    for number in range(1, 3):
        bench.start(str(number), PROMPT, seeded(number), fork_of="0")
    bench.finish()
    assert [bench.streams[str(number)].tokens for number in range(3)] == expected


def test_a_prompt_of_one_token_can_be_forked(model: LoadedModel) -> None:
    expected = Bench(model).run("h", ENDLESS).tokens
    bench = Bench(model)
    bench.start("a", "h", ENDLESS)
    bench.start("b", "h", ENDLESS, fork_of="a")
    bench.finish()
    assert bench.streams["a"].tokens == bench.streams["b"].tokens == expected


def test_a_fork_of_a_running_sequence_begins_with_a_copy(trimmable: LoadedModel) -> None:
    bench = Bench(trimmable)
    parent = bench.start("0", PROMPT, seeded(0))
    while len(parent.tokens) < 5:
        bench.step()
    bench.start("1", PROMPT, seeded(1), fork_of="0")
    bench.finish()
    assert bench.streams["1"].tokens == alone(trimmable, seeded(1))
    assert parent.tokens == alone(trimmable, seeded(0))
    assert bench.prefilled == len(PROMPT) + 1


@pytest.mark.parametrize("name", ["gemma3", "mamba", "llama4"])
def test_a_late_fork_computes_the_prompt_where_caches_cannot_be_cut(name: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(name))
    bench = Bench(model)
    parent = bench.start("0", PROMPT, seeded(0))
    while len(parent.tokens) < 5:
        bench.step()
    bench.start("1", PROMPT, seeded(1), fork_of="0")
    bench.finish()
    assert bench.streams["1"].tokens == alone(model, seeded(1))
    assert bench.prefilled == 2 * len(PROMPT)


@pytest.mark.parametrize("when", ["before its prompt", "in its prompt", "while forks wait", "with its first token"])
def test_forks_of_a_sequence_that_is_gone_compute_the_prompt(model: LoadedModel, when: str) -> None:
    expected = [alone(model, seeded(number)) for number in (1, 2)]
    bench = Bench(model, replace(POLICY, max_num_seqs=1 if when == "while forks wait" else 8))
    ends_at_once = when == "with its first token"
    parent = bench.start("0", PROMPT, replace(ENDLESS, max_tokens=1) if ends_at_once else ENDLESS)
    for number in (1, 2):
        bench.start(str(number), PROMPT, seeded(number), fork_of="0")
    if when == "in its prompt":
        bench.step(2)
    elif when == "while forks wait":
        while len(parent.tokens) < 3:
            bench.step()
    if not ends_at_once:
        assert bench.generation.abort("0") is not None
    bench.finish()
    assert [bench.streams[name].tokens for name in ("1", "2")] == expected
    assert list(model.runner.kept) == []


def test_forks_that_wait_for_a_slot_copy_from_a_sequence_that_still_runs(model: LoadedModel) -> None:
    """Others have taken the slots: what forks need is kept until the last of them has begun."""
    bench = Bench(model, replace(POLICY, max_num_seqs=2))
    long = replace(ENDLESS, max_tokens=40)
    bench.start("0", PROMPT, long)
    bench.start("other", "Zebras!", replace(ENDLESS, max_tokens=4))
    for number in (1, 2):
        bench.start(str(number), PROMPT, replace(seeded(number), max_tokens=6), fork_of="0")
    expected = {number: alone(model, replace(seeded(number), max_tokens=6)) for number in (1, 2)}
    bench.finish()
    assert {number: bench.streams[str(number)].tokens for number in (1, 2)} == expected
    assert bench.streams["0"].tokens == alone(model, long)
    assert bench.prefilled == len(PROMPT) + len("Zebras!") + 2
    assert list(model.runner.kept) == []


def test_what_is_kept_for_forks_is_dropped_when_the_last_of_them_is_aborted(mamba: Path) -> None:
    model = load(mamba)
    bench = Bench(model, replace(POLICY, max_num_seqs=1))
    bench.start("0", PROMPT, replace(ENDLESS, max_tokens=100))
    bench.start("1", PROMPT, ENDLESS, fork_of="0")
    while not bench.streams["0"].tokens:
        bench.step()
    assert list(model.runner.kept) == ["0"]
    assert bench.generation.abort("1") is not None
    bench.step()
    assert list(model.runner.kept) == []


def test_forks_of_a_preempted_sequence_give_what_they_give_alone(model: LoadedModel) -> None:
    expected = [alone(model, seeded(number)) for number in range(2)]
    bench = Bench(model, replace(POLICY, max_num_seqs=1))
    parent = bench.start("0", PROMPT, seeded(0), priority="low")
    bench.start("1", PROMPT, seeded(1), priority="low", fork_of="0")
    while len(parent.tokens) < 4:
        bench.step()
    high = bench.start("high", "zz", replace(ENDLESS, max_tokens=3), priority="high")
    while high.end is None:
        bench.step()
    assert len(parent.tokens) < 12
    bench.finish()
    assert [bench.streams[name].tokens for name in ("0", "1")] == expected


def test_a_preempted_fork_computes_its_prompt_and_what_it_had(model: LoadedModel) -> None:
    expected = alone(model, seeded(1))
    bench = Bench(model, replace(POLICY, max_num_seqs=2))
    bench.start("0", PROMPT, replace(ENDLESS, max_tokens=60))
    fork = bench.start("1", PROMPT, seeded(1), priority="low", fork_of="0")
    while len(fork.tokens) < 4:
        bench.step()
    bench.start("high", "zz", replace(ENDLESS, max_tokens=3), priority="high")
    bench.finish()
    assert fork.tokens == expected


@pytest.mark.parametrize("prompt", ["A prompt of other tokens, not shared", "A prompt"])
def test_a_hint_that_is_wrong_is_not_followed(model: LoadedModel, prompt: str) -> None:
    expected = Bench(model).run(prompt, ENDLESS).tokens
    bench = Bench(model)
    bench.start("a", PROMPT, ENDLESS)
    bench.start("b", prompt, ENDLESS, fork_of="a")
    bench.start("c", prompt, ENDLESS, fork_of="nobody")
    bench.finish()
    assert bench.streams["b"].tokens == bench.streams["c"].tokens == expected


def test_a_hint_to_another_model_s_sequence_is_not_followed(llama: Path, qwen3: Path) -> None:
    one, other = load(llama), load(qwen3)
    bench = Bench(one)
    bench.generation.models.add(other)
    bench.start("a", PROMPT, ENDLESS)
    bench.start("b", PROMPT, ENDLESS, fork_of="a", model=other)
    bench.finish()
    assert bench.streams["b"].tokens == Bench(other).run(PROMPT, ENDLESS).tokens


def test_a_parked_sequence_and_one_that_is_recomputed_can_be_copied_from(trimmable: LoadedModel) -> None:
    """What was computed for it is there, wherever the runner has it now."""
    runner, ids = trimmable.runner, token_ids(PROMPT)
    expected = alone(trimmable, ENDLESS)[:3]
    runner.open(Job("parent", ids, GREEDY, 0))
    runner.admit("parent")
    runner.run((), [PrefillChunk("parent", 0, len(ids), last=True)], ())
    runner.run(("parent",), (), ())
    parent_has = [token.token_id for token in runner.drain()]
    runner.park("parent")
    assert tokens_of_a_fork(runner, "of the parked", ids) == expected
    runner.evict("parent")
    runner.admit("parent")
    runner.run((), [PrefillChunk("parent", 0, len(ids), last=False)], ())
    assert tokens_of_a_fork(runner, "of the recomputed", ids) == expected
    assert len(parent_has) == 1


def tokens_of_a_fork(runner: ModelRunner, name: str, ids: list[int]) -> list[int]:
    runner.open(Job(name, ids, GREEDY, 0))
    runner.admit(name, "parent")
    runner.run((), [PrefillChunk(name, len(ids) - 1, 1, last=True)], ())
    given = [*runner.run((name,), (), ()), *runner.run((name,), (), ()), *runner.drain()]
    runner.remove(name)
    return [token.token_id for token in given if token.stream_id == name]


def test_a_copy_that_cannot_be_had_is_computed(llama: Path) -> None:
    """The scheduler ordered a copy, and the sequence it was to come from ended meanwhile."""
    model = load(llama)
    nothing = ModelCapabilities(batch=True, batch_prefill=False, trim=False, quantise_cache=False, draft=False)
    runner, ids = ModelRunner(model.model, nothing), token_ids(PROMPT)
    expected = alone(model, ENDLESS)[:3]
    assert tokens_of_a_fork(runner, "of nobody", ids) == expected
    runner.open(Job("parent", ids, GREEDY, 0))
    runner.admit("parent")
    runner.run((), [PrefillChunk("parent", 0, len(ids), last=True)], ())
    assert (
        tokens_of_a_fork(runner, "of one beyond its prompt", ids[:-3]) == Bench(model).run(ids[:-3], ENDLESS).tokens[:3]
    )
    runner.remove("parent")
    assert tokens_of_a_fork(runner, "of one that is gone", ids) == expected
