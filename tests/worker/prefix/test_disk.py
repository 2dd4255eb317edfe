"""What was computed once is read by those who come after a restart, and gives the same tokens."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mlx_serving.catalog.prefix_records import read_header
from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.prefix.record import DiskRecord
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.prefix import disk as prefix_disk
from mlx_serving.worker.prefix import folder as prefix_folder

from ...tiny_models import make_llama, token_ids
from ..bench import Bench, Stream, load
from ..test_model_runner import ARCHITECTURES
from .disk_bench import on_disk, records

ENDLESS = SamplingParams(max_tokens=12, logit_bias={258: -100.0})
SAMPLED = replace(ENDLESS, temperature=1.0, top_p=0.95, frequency_penalty=0.3, seed=7)
SYSTEM = "You are a helpful assistant, and you answer briefly. "
PROMPT = token_ids(SYSTEM + "Who are you, and what is it that you are for?")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def plain(llama: Path) -> LoadedModel:
    return load(llama)


@cache
def copy_of(directory: str) -> LoadedModel:
    return load(Path(directory))


def alone(model: LoadedModel, prompt: list[int], params: SamplingParams = ENDLESS) -> list[int]:
    """What a model gives that keeps nothing."""
    return Bench(copy_of(model.facts.cached_path)).run(prompt, params).tokens


def cached(stream: Stream) -> int:
    return stream.completed.stats.cached_tokens


@pytest.mark.parametrize("params", [ENDLESS, SAMPLED], ids=["greedy", "sampled"])
def test_a_conversation_goes_on_after_each_of_several_restarts(
    model: LoadedModel, params: SamplingParams, tmp_path: Path
) -> None:
    history: list[int] = []
    for turn in range(4):
        prompt = [*history, *token_ids(f"{SYSTEM}Question {turn} is a little long?")]
        with on_disk(model, tmp_path) as bench:
            stream = bench.ask(prompt, params)
            assert bench.reports == []
        assert stream.tokens == alone(model, prompt, params)
        # The last tokens of an answer may not be in a cache yet when it ends.
        assert cached(stream) >= len(history) - 2
        history = [*prompt, *stream.tokens]


def test_what_differs_in_the_middle_of_a_record_is_used_up_to_there(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS)
    other = [*PROMPT[:40], *token_ids("something quite different")]
    with on_disk(plain, tmp_path) as bench:
        stream = bench.ask(other, ENDLESS)
        assert stream.tokens == alone(plain, other)
        assert cached(stream) == 40
        assert bench.counts.read == 1


def test_long_prompts_are_many_records(tmp_path: Path) -> None:
    model = load(make_llama(tmp_path / "model", context_length=2048))
    prompt = token_ids(SYSTEM * 20)
    folder = tmp_path / "cache"
    with on_disk(model, folder, block_tokens=64) as bench:
        first = bench.ask(prompt, ENDLESS)
    assert len(records(folder)) > len(prompt) // 256
    with on_disk(model, folder, block_tokens=64) as bench:
        assert bench.ask(prompt, ENDLESS).tokens == first.tokens
        assert bench.prefilled == 1
        bench.settle()
        assert bench.counts.written == 0, "all of it is there already"


def test_what_a_turn_has_left_unfilled_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    model = load(make_llama(tmp_path / "model", context_length=2048))
    history: list[int] = []
    for turn in range(5):
        history += token_ids(f"{turn}. {SYSTEM}{SYSTEM}")
        with on_disk(model, tmp_path / "cache", block_tokens=64) as bench:
            stream = bench.ask(history, ENDLESS)
        assert stream.tokens == alone(model, history)
        history += stream.tokens
        files = [read_header(path) for path in records(tmp_path / "cache")]
        assert sorted(file.start for file in files) == list(range(0, len(history) - 2, 256))
        assert sum(file.count for file in files) >= len(history) - 2


def test_the_disk_is_told_of_each_record_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(make_llama(tmp_path / "model", context_length=2048))
    prompt = token_ids(SYSTEM * 25)
    with on_disk(model, tmp_path / "cache") as bench:
        bench.ask(prompt, ENDLESS)
    told: list[int] = []

    def advise(folder: Path, record: DiskRecord) -> None:
        told.append(record.start)
        raise OSError("this file system takes no advice")

    monkeypatch.setattr(prefix_folder, "_WORTH_ADVICE_BYTES", 0)
    monkeypatch.setattr(prefix_folder, "advise_record", advise)
    with on_disk(model, tmp_path / "cache") as bench:
        assert cached(bench.ask(prompt, ENDLESS)) == len(prompt) - 1
    assert told == list(range(256, len(prompt), 256))


def test_blocks_of_another_size_are_cut_anew(tmp_path: Path) -> None:
    model = load(make_llama(tmp_path / "model", context_length=2048))
    prompt = token_ids(SYSTEM * 12)
    sizes = [48, 64, 100, 16, 256]
    for number, size in enumerate(sizes):
        with on_disk(model, tmp_path / "cache", block_tokens=size) as bench:
            said = prompt[: 200 + number * 80]
            stream = bench.ask(said, ENDLESS)
            assert stream.tokens == alone(model, said)
            assert cached(stream) >= (200 + (number - 1) * 80 if number else 0)
            assert bench.reports == []


def test_nobody_finds_what_was_kept_under_another_salt(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS, salt="one")
    with on_disk(plain, tmp_path) as bench:
        assert cached(bench.ask(PROMPT, ENDLESS, salt="other")) == 0
        assert cached(bench.ask(PROMPT, ENDLESS, salt="one")) > 0


def test_prompts_that_come_together_read_what_they_share_once(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS)
    prompts = [[*PROMPT, *token_ids(f" {name}?")] for name in ("Anna", "Berta", "Carla")]
    with on_disk(plain, tmp_path) as bench:
        ready: list[int] = []
        for number, prompt in enumerate(prompts):
            assert bench.disk.read_ahead(plain.model_id, prompt, "", "", lambda number=number: ready.append(number))
        while len(ready) < len(prompts):
            bench.settle()
        assert ready == [0, 1, 2]
        assert bench.counts.read_tokens < 2 * len(PROMPT)
        for number, prompt in enumerate(prompts):
            bench.start(str(number), prompt, ENDLESS)
        bench.finish()
        assert [bench.streams[str(number)].tokens for number in range(3)] == [alone(plain, one) for one in prompts]
        assert all(cached(stream) >= len(PROMPT) for stream in bench.streams.values())


def test_a_model_that_goes_leaves_nobody_waiting(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS)
    with on_disk(plain, tmp_path) as bench:
        ready: list[int] = []
        for number in range(2):
            assert bench.disk.read_ahead(plain.model_id, PROMPT, "", "", lambda number=number: ready.append(number))
        bench.disk.remove_model(plain.model_id)
        while len(ready) < 2:
            bench.settle()
        assert not bench.disk.read_ahead(plain.model_id, PROMPT, "", "", lambda: None)


def test_a_model_that_goes_while_its_files_are_read_is_not_taken_for_the_next_one_of_its_name(
    plain: LoadedModel, tmp_path: Path
) -> None:
    slow = load(make_llama(tmp_path / "slow", seed=1), model_id=plain.model_id)
    folder = tmp_path / "cache"
    with on_disk(plain, folder) as bench:
        answer = bench.ask(PROMPT, ENDLESS).tokens
    with on_disk(plain, folder) as bench:
        bench.disk.remove_model(plain.model_id)
        bench.disk.add_model(slow)  # its digest is found out on the other thread, and told when the bench settles
        bench.disk.remove_model(plain.model_id)
        bench.disk.add_model(plain)
        bench.settle()
        stream = bench.ask(PROMPT, ENDLESS)
        assert (stream.tokens, cached(stream)) == (answer, len(PROMPT) - 1)


def test_what_cannot_be_made_is_not_written(
    plain: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(prefix_disk, "to_content", fail)
    with on_disk(plain, tmp_path) as bench:
        assert bench.ask(PROMPT, ENDLESS).tokens == alone(plain, PROMPT)
        bench.settle()
        assert {reason for _, reason in bench.reports} == {"RuntimeError: no memory for it"}
        assert (bench.counts.pending, bench.counts.records) == (0, 0)


def test_a_model_that_was_moved_is_the_same(llama: Path, tmp_path: Path) -> None:
    with on_disk(load(llama), tmp_path / "cache") as bench:
        bench.ask(PROMPT, ENDLESS)
    moved = load(shutil.copytree(llama, tmp_path / "moved", copy_function=shutil.copyfile))
    with on_disk(moved, tmp_path / "cache") as bench:
        stream = bench.ask(PROMPT, ENDLESS)
        assert stream.tokens == alone(moved, PROMPT)
        assert cached(stream) > 0


def test_a_stream_that_was_cut_off_goes_on_behind_what_it_had_computed(tmp_path: Path) -> None:
    """It never ended: its worker died. The answer is a long one, and reaches the disk as it grows."""
    model = load(make_llama(tmp_path / "model", context_length=2048))
    endless = replace(ENDLESS, max_tokens=700)
    with on_disk(model, tmp_path / "cache") as bench:
        stream = bench.start("cut off", PROMPT, endless)
        while len(stream.tokens) < 600:
            bench.step()
            bench.disk.work()
    again = load(Path(model.facts.cached_path))
    with on_disk(again, tmp_path / "cache") as bench:
        so_far = [*PROMPT, *stream.tokens]
        recovered = bench.ask(so_far, replace(ENDLESS, max_tokens=20))
    assert cached(recovered) >= 512
    assert recovered.tokens == alone(again, so_far, replace(ENDLESS, max_tokens=20))
