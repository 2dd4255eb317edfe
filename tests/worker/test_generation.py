"""Who waits, who runs, and what is left when a step fails: on a real model, and on a runner that does as it is told."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.schedule.scheduling import PrefillChunk
from mlx_serving.errors import Overloaded
from mlx_serving.worker.batch import Token
from mlx_serving.worker.job import Job
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.model_runner import ModelRunner
from mlx_serving.worker.prefix.cache import Beginning
from mlx_serving.worker.speculation.model_drafter import ModelDrafter
from mlx_serving.worker.speculation.speculator import Speculator

from ..tiny_models import SPELLED, token_ids
from .bench import POLICY, Bench, load

TEN = SamplingParams(max_tokens=10)


class ScriptedRunner(ModelRunner):
    """Gives every sequence the same token in every step, at once, unless told to raise."""

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id
        self.jobs: dict[str, Job] = {}
        self.admitted: list[str] = []
        self.speculator = Speculator(ModelDrafter, able=False, weight_bytes=1)
        self.closed = False
        self.fail_admitting: Exception | None = None
        self.fail_stepping: Exception | None = None
        self.fail_draining: Exception | None = None

    @property
    def is_checking(self) -> bool:
        return False

    @property
    def kept(self) -> Collection[str]:
        return ()

    @property
    def running(self) -> list[str]:
        return [stream_id for stream_id in self.admitted if stream_id in self.jobs]

    def open(self, job: Job) -> None:
        self.jobs[job.stream_id] = job

    def admit(self, stream_id: str, fork_of: str | None = None, beginning: Beginning | None = None) -> None:
        if self.fail_admitting is not None:
            raise self.fail_admitting
        self.admitted.append(stream_id)

    def run(self, decode: Collection[str], prefill: Sequence[PrefillChunk], ending: Collection[str]) -> list[Token]:
        if self.fail_stepping is not None:
            raise self.fail_stepping
        begun = [chunk.id for chunk in prefill if chunk.last]
        return [Token(stream_id, self._token_id) for stream_id in (*decode, *begun) if stream_id in self.jobs]

    def drain(self) -> list[Token]:
        if self.fail_draining is not None:
            raise self.fail_draining
        return []

    def park(self, stream_id: str) -> None:
        pass

    def evict(self, stream_id: str) -> None:
        self.admitted.remove(stream_id)

    def remove(self, stream_id: str) -> None:
        if self.fail_stepping is not None:
            raise self.fail_stepping
        self.jobs.pop(stream_id, None)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def model(speller: Path) -> LoadedModel:
    return load(speller)


@pytest.fixture
def scripted(model: LoadedModel) -> ScriptedRunner:
    runner = ScriptedRunner(token_ids("k")[0])
    model.runner = runner
    return runner


def test_no_more_than_max_num_seqs_run_at_once_in_the_order_they_came(
    model: LoadedModel, scripted: ScriptedRunner
) -> None:
    bench = Bench(model, replace(POLICY, max_num_seqs=2, max_queue=3))
    for name in "abcde":
        bench.start(name, name, SamplingParams(max_tokens=2 if name == "a" else 3))
    assert [row.stream_id for row in bench.step()] == ["a", "b"]
    assert [row.stream_id for row in bench.step()] == ["a", "b"]
    assert [row.stream_id for row in bench.step()] == ["b", "c"]
    assert scripted.running == ["c"]
    bench.finish()
    assert {name: stream.text for name, stream in bench.streams.items()} == {"a": "kk"} | dict.fromkeys("bcde", "kkk")
    assert scripted.jobs == {}


@pytest.mark.parametrize(("max_num_seqs", "max_queue"), [(2, 1), (1, 1), (1, 2)])
def test_what_has_neither_slot_nor_place_is_refused(
    model: LoadedModel, scripted: ScriptedRunner, max_num_seqs: int, max_queue: int
) -> None:
    bench = Bench(model, replace(POLICY, max_num_seqs=max_num_seqs, max_queue=max_queue))
    for index in range(max_num_seqs + max_queue):
        bench.start(str(index), "a", TEN)
    for _ in range(2):
        with pytest.raises(Overloaded) as caught:
            bench.start("late", "a", TEN)
        assert caught.value.retry_after > 0
        assert caught.value.details["limit"] == max_queue
        bench.step()
    bench.generation.abort("0")
    bench.start("in time", "a", TEN)
    bench.finish()
    assert bench.streams["in time"].text == "k" * 10


def test_aborting_reaches_those_who_run_and_those_who_wait(model: LoadedModel, scripted: ScriptedRunner) -> None:
    bench = Bench(model, replace(POLICY, max_num_seqs=1))
    bench.start("runs", "a", TEN)
    bench.start("waits", "a", TEN)
    bench.step()
    assert bench.generation.stream_ids(model.model_id) == ["runs", "waits"]
    for name, generated in (("waits", 0), ("runs", 1)):
        assert name in bench.generation
        row = bench.generation.abort(name)
        assert row is not None
        bench.streams[name].end = row.end
        assert bench.streams[name].completed.finish_reason == "abort"
        assert bench.streams[name].completed.stats.tokens_generated == generated
        assert name not in bench.generation
    assert bench.generation.abort("runs") is None
    assert scripted.jobs == {}
    assert bench.step() == []


def test_a_step_that_raises_fails_its_sequences_and_the_next_request_is_served(model: LoadedModel) -> None:
    """The runner that failed is replaced: what it left behind touches nothing, and it is asked for nothing more."""
    broken = ScriptedRunner(0)
    model.runner = broken
    bench = Bench(model, replace(POLICY, max_num_seqs=2))
    for name in ("first", "second", "waiting"):
        bench.start(name, "a", SamplingParams(max_tokens=3))
    broken.fail_stepping = RuntimeError("[METAL] out of memory")
    bench.step()
    for name in ("first", "second"):
        error = bench.streams[name].failed.error
        assert (error.code, error.data["type"]) == (-32002, "GenerationError")
        assert "RuntimeError: [METAL] out of memory" in error.message
    assert broken.closed
    bench.finish()
    assert bench.streams["waiting"].text == "bcd"
    assert bench.run("x", SamplingParams(max_tokens=2)).text == "yz"


@pytest.mark.parametrize("place", ["fail_stepping", "fail_admitting"])
def test_want_of_memory_is_not_the_sequences_failure(model: LoadedModel, scripted: ScriptedRunner, place: str) -> None:
    """It ends the worker; the streams go on in the next one, which plans with less."""
    bench = Bench(model, replace(POLICY, max_num_seqs=1))
    bench.start("runs", "a", SamplingParams(max_tokens=2))
    setattr(scripted, place, RuntimeError("[malloc] Unable to allocate 8589934592 bytes."))
    with pytest.raises(RuntimeError, match="Unable to allocate"):
        bench.finish()
    assert bench.streams["runs"].end is None


def test_a_step_that_raises_leaves_other_models_alone(model: LoadedModel, llama: Path) -> None:
    other = load(llama)
    bench, broken = Bench(model), ScriptedRunner(0)
    bench.start("good", "a", SamplingParams(max_tokens=5))
    bench.step()
    other.runner = broken
    bench.generation.models.add(other)
    broken.fail_stepping = RuntimeError("no")
    bench.start("bad", "a", model=other)
    bench.finish()
    assert bench.streams["good"].text == "bcdef"
    assert bench.streams["bad"].failed.error.data["details"] == {"model": other.model_id}


def test_a_sequence_that_cannot_begin_fails_alone(model: LoadedModel, scripted: ScriptedRunner) -> None:
    bench = Bench(model)
    bench.start("good", "a", TEN)
    bench.step()
    scripted.fail_admitting = ValueError("no cache")
    bench.start("bad", "a", TEN)
    bench.finish()
    assert "could not begin: ValueError: no cache" in bench.streams["bad"].failed.error.message
    assert bench.streams["good"].text == "k" * 10


def test_a_sequence_whose_tokens_cannot_be_decoded_fails_alone(model: LoadedModel, scripted: ScriptedRunner) -> None:
    bench = Bench(model)

    def refuse(_: object) -> str:
        raise UnicodeError("no text")

    bench.start("good", "a", TEN)
    model.decode, decode = refuse, model.decode
    with pytest.raises(UnicodeError):  # the prompt's end is decoded at once
        bench.start("early", "a", TEN)
    calls: list[object] = []
    model.decode = lambda ids: decode(ids) if not calls and not calls.append(ids) else refuse(ids)
    bench.start("bad", "a", TEN)
    bench.finish()
    assert "could not be decoded: UnicodeError: no text" in bench.streams["bad"].failed.error.message
    assert bench.streams["good"].text == "k" * 10
    assert scripted.jobs == {}


@pytest.mark.parametrize("name", ["speller", "mamba", "llama4"])
def test_a_model_that_raises_in_a_real_step_recovers(name: str, request: pytest.FixtureRequest) -> None:
    """The exception comes out of the forward pass, with batches and caches half done."""
    model = load(request.getfixturevalue(name))
    bench = Bench(model)
    params = SamplingParams(max_tokens=6, logit_bias={258: -100})
    expected = bench.run("abc", params).tokens

    bench.start("running", "abc", params)
    bench.start("prefilling", "d" * 40, params)
    bench.step(2)
    kind = type(model.model)

    class Faulty(kind):
        def __call__(self, *_: object, **__: object) -> None:
            raise RuntimeError("no such kernel")

    model.model.__class__ = Faulty
    bench.step()
    assert all("no such kernel" in stream.failed.error.message for stream in bench.streams.values())
    model.model.__class__ = kind
    assert len(bench.generation) == 0
    assert bench.run("abc", params).tokens == expected


def test_a_whole_text_ends_with_its_usage(model: LoadedModel) -> None:
    stream = Bench(model).run("xyza", SamplingParams(max_tokens=100))
    assert stream.text == SPELLED[1:]
    stats = stream.completed.stats
    assert (stats.prompt_tokens, stats.tokens_generated) == (4, len(SPELLED.encode()))
    assert 0 < stats.time_to_first_token <= stats.total_time


@pytest.mark.parametrize("name", ["qwen3", "mamba", "llama4"])
def test_two_models_take_turns_and_both_give_what_they_give_alone(
    model: LoadedModel, name: str, request: pytest.FixtureRequest
) -> None:
    other, params = load(request.getfixturevalue(name)), SamplingParams(max_tokens=12, logit_bias={258: -100})
    alone = Bench(other).run("abc", params).tokens
    bench = Bench(model)
    bench.generation.models.add(other)
    bench.start("one", "a", params)
    bench.start("two", "abc", params, model=other)
    while not (bench.streams["one"].tokens and bench.streams["two"].tokens):
        bench.step()
    assert bench.streams["one"].end is None
    assert bench.streams["two"].end is None
    bench.finish()
    assert bench.streams["one"].text == "bcdefghijklm"
    assert bench.streams["two"].tokens == alone


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=1.0, seed=4, frequency_penalty=0.4)])
@pytest.mark.parametrize("name", ["llama", "mamba", "llama4"])
def test_a_preempted_sequence_goes_on_with_the_same_tokens(
    name: str, sampling: SamplingParams, request: pytest.FixtureRequest
) -> None:
    bench = Bench(load(request.getfixturevalue(name)), replace(POLICY, max_num_seqs=1))
    params = replace(sampling, max_tokens=20, logit_bias={258: -100})
    expected = bench.run("a prompt of three chunks", params).tokens
    low = bench.start("low", "a prompt of three chunks", params, priority="low")
    while len(low.tokens) < 6:
        bench.step()
    high = bench.start("high", "zz", SamplingParams(max_tokens=3, logit_bias={258: -100}), priority="high")
    while high.end is None:
        bench.step()
    assert len(low.tokens) < 20
    bench.finish()
    assert low.tokens == expected
    assert low.completed.stats.tokens_generated == 20


def test_a_sequence_that_ends_as_it_is_preempted_has_ended(model: LoadedModel) -> None:
    """Its last token was under way; the step that was to preempt it goes on without it."""
    bench = Bench(model, replace(POLICY, max_num_seqs=1))
    low = bench.start("low", "8", priority="low")  # gives 9 and then ends its turn
    while not low.tokens:
        bench.step()
    assert low.end is None
    high = bench.start("high", "a", SamplingParams(max_tokens=3), priority="high")
    bench.finish()
    assert (low.text, low.completed.finish_reason) == ("9", "stop")
    assert high.text == "bcd"


def test_a_sequence_whose_deadline_is_over_is_told_and_forgotten(model: LoadedModel, scripted: ScriptedRunner) -> None:
    bench = Bench(model)
    bench.start("good", "a", TEN)
    bench.start("late", "a", TEN, deadline=0.0)
    bench.finish()
    assert bench.streams["late"].failed.error.data["type"] == "Timeout"
    assert bench.streams["good"].text == "k" * 10
    assert scripted.jobs == {}


def test_a_launch_that_fails_when_it_is_read_fails_its_own_model(model: LoadedModel, llama: Path) -> None:
    other, broken = load(llama), ScriptedRunner(0)
    other.runner = broken
    bench = Bench(model)
    bench.generation.models.add(other)
    bench.start("bad", "a", model=other)
    bench.step()
    broken.fail_draining = RuntimeError("[METAL] device lost")
    bench.start("good", "a", SamplingParams(max_tokens=5))
    bench.finish()
    assert "device lost" in bench.streams["bad"].failed.error.message
    assert bench.streams["good"].text == "bcdef"
    assert broken.closed


def test_a_model_without_sequences_can_be_removed_and_added_again(model: LoadedModel) -> None:
    bench = Bench(model)
    assert bench.run("a", SamplingParams(max_tokens=2)).text == "bc"
    bench.generation.models.remove(model.model_id)
    bench.generation.models.add(model)
    assert bench.run("b", SamplingParams(max_tokens=2)).text == "cd"


def test_a_paused_sequence_gets_nothing_more_and_goes_on_where_it_was(model: LoadedModel) -> None:
    bench = Bench(model)
    slow, quick = bench.start("slow", "a"), bench.start("quick", "n", SamplingParams(max_tokens=12))
    bench.step(5)
    bench.pause("slow")
    text = slow.text
    assert len(text) >= 3
    bench.step(3)
    assert (slow.text, bench.generation.paused) == (text, 1)
    while quick.end is None:
        bench.step()
    assert quick.text == "opqrstuvwxyz"
    bench.generation.resume("slow")
    bench.finish()
    assert slow.text == SPELLED[1:25]


def test_a_paused_sequence_gives_its_slot_to_another(model: LoadedModel) -> None:
    bench = Bench(model, replace(POLICY, max_num_seqs=1))
    slow = bench.start("slow", "a")
    bench.step(3)
    bench.pause("slow")
    following = bench.start("next", "n", SamplingParams(max_tokens=4))
    bench.finish()
    assert (following.text, slow.end) == ("opqr", None)
    bench.generation.resume("slow")
    bench.finish()
    assert slow.text == SPELLED[1:25]


def test_nothing_is_to_be_done_while_all_that_are_left_are_paused(model: LoadedModel, llama: Path) -> None:
    other = load(llama)
    bench = Bench(model)
    bench.generation.models.add(other)
    assert bench.generation.is_idle
    bench.start("slow", "a")
    bench.start("last token under way", "a", SamplingParams(max_tokens=2), model=other)
    bench.step(4)
    bench.pause("slow")
    while bench.streams["last token under way"].end is None:
        assert not bench.generation.is_idle
        bench.step()
    assert bench.generation.is_idle
    assert bench.step(3) == []
    bench.generation.resume("slow")
    assert not bench.generation.is_idle


def test_a_sequence_whose_end_was_under_way_when_it_was_paused_has_ended(model: LoadedModel) -> None:
    bench = Bench(model)
    stream = bench.start("a", "8")  # gives 9 and then ends its turn
    while not stream.tokens:
        bench.step()
    bench.pause("a")
    assert (stream.text, stream.completed.finish_reason) == ("9", "stop")
    assert bench.generation.is_idle
    bench.pause("a")
    bench.generation.resume("a")


def test_a_paused_sequence_loses_its_memory_to_another_and_its_text_is_the_same(model: LoadedModel) -> None:
    budget = 40 * model.kv_bytes_per_token
    bench = Bench(model, replace(POLICY, kv_budget_bytes=budget))
    slow = bench.start("slow", "abcd", SamplingParams(max_tokens=20))
    bench.step(4)
    bench.pause("slow")
    quick = bench.start("quick", "n", SamplingParams(max_tokens=30))
    bench.finish()
    assert quick.end is not None
    assert bench.scheduler.load().preemptions == 1
    bench.generation.resume("slow")
    bench.finish()
    assert slow.text == SPELLED[4:24]


def test_a_paused_sequence_can_be_aborted_and_its_deadline_holds(model: LoadedModel) -> None:
    bench = Bench(model)
    for name in ("aborted", "late"):
        bench.start(name, "a", deadline=time.monotonic() + 3600 if name == "late" else None)
    bench.step(3)
    for name in ("aborted", "late"):
        bench.pause(name)
    assert bench.generation.abort("aborted") is not None
    assert bench.generation.is_idle
    due = bench.generation.next_deadline
    assert due is not None
    assert due > time.monotonic() + 3000


def test_resuming_all_lets_everybody_go_on(model: LoadedModel) -> None:
    bench = Bench(model)
    for name in "abc":
        bench.start(name, name, SamplingParams(max_tokens=5))
    bench.step(3)
    for name in "ac":
        bench.pause(name)
    bench.generation.resume_all()
    bench.finish()
    assert [stream.text for stream in bench.streams.values()] == ["bcdef", "cdefg", "defgh"]
