"""Whatever becomes of the prefix cache's files: prompts are answered as if there were none, and somebody is told."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_serving.catalog import prefix_records
from mlx_serving.catalog.prefix_records import SUFFIX, path_of, read_header, read_record, version_folder, write_record
from mlx_serving.core.prefix.disk import DiskPolicy
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.prefix import folder as prefix_folder

from ...tiny_models import make_llama, token_ids
from ..bench import load
from .disk_bench import DiskBench, on_disk, records
from .test_disk import ENDLESS, alone, cached

PROMPT = token_ids("You are a helpful assistant. Who are you, and what is it that you are for?")
OTHER = token_ids("Another prompt altogether, which begins with other tokens and is a little long.")


@pytest.fixture(scope="module")
def model(llama: Path) -> LoadedModel:
    return load(llama)


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The same architecture and configuration, other weights."""
    return load(make_llama(tmp_path_factory.mktemp("sibling") / "llama", seed=1))


@pytest.fixture
def expected(model: LoadedModel) -> list[int]:
    return alone(model, PROMPT)


@pytest.fixture
def folder(model: LoadedModel, tmp_path: Path) -> Path:
    """A cache that knows `PROMPT`, and its answer."""
    with on_disk(model, tmp_path / "cache") as bench:
        bench.ask(PROMPT, ENDLESS)
    assert records(tmp_path / "cache")
    return tmp_path / "cache"


def _cut(part: float) -> Callable[[Path], object]:
    return lambda path: os.truncate(path, int(path.stat().st_size * part))


def _flip(place: Callable[[bytes], int]) -> Callable[[Path], object]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place(bytes(content))] ^= 0x10
        path.write_bytes(content)

    return flip


def _from_the_future(path: Path) -> None:
    record = read_header(path)
    folder = path.parent.parent.parent
    content = read_record(folder, record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_records, "FORMAT_VERSION", prefix_records.FORMAT_VERSION + 1)
        later = version_folder(folder)
        (later / record.model).mkdir(parents=True)
        write_record(folder, record, content)
        path_of(folder, record).replace(path)
    shutil.rmtree(later)


def _become_a_link(path: Path) -> None:
    path.replace(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": _cut(0),
    "cut in its header": _cut(0.05),
    "cut in its tensors": _cut(0.9),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "a bit of its length": _flip(lambda content: 5),
    "a bit of its tokens": _flip(lambda content: content.index(b'"tokens":"') + 12),
    "a bit of its layout": _flip(lambda content: content.index(b'"layout":"') + 30),
    "a bit of a shape": _flip(lambda content: content.index(b'"shape":[') + 9),
    "a bit of a tensor": _flip(lambda content: len(content) * 9 // 10),
    "the last bit": _flip(lambda content: len(content) - 1),
    "nonsense": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "of a version to come": _from_the_future,
    "a link": _become_a_link,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("when", ["before the start", "after the start"])
def test_a_damaged_file_is_found_out_and_made_again(
    model: LoadedModel, folder: Path, expected: list[int], damage: Callable[[Path], object], when: str
) -> None:
    if when == "before the start":
        for path in records(folder):
            damage(path)
    with on_disk(model, folder) as bench:
        if when == "after the start":
            for path in records(folder):
                damage(path)
        stream = bench.ask(PROMPT, ENDLESS)
        assert stream.tokens == expected
        assert cached(stream) == 0
        bench.settle()
        assert "damaged" in [what for what, _ in bench.reports]
        assert bench.counts.damaged >= 1
        assert bench.counts.written >= 1
    with on_disk(model, folder) as bench:
        stream = bench.ask(PROMPT, ENDLESS)
        assert stream.tokens == expected
        assert cached(stream) > 0
        assert bench.reports == []


def test_a_file_of_another_model_is_not_used(
    model: LoadedModel, sibling: LoadedModel, folder: Path, tmp_path: Path, expected: list[int]
) -> None:
    with on_disk(sibling, tmp_path / "other") as bench:
        assert bench.ask(PROMPT, ENDLESS).tokens != expected
    ours, theirs = records(folder), records(tmp_path / "other")
    assert ours[0].parent.name != theirs[0].parent.name
    for path, foreign in zip(ours, theirs, strict=True):
        shutil.copy(foreign, path)  # under our name
    for foreign in theirs:
        shutil.copy(foreign, ours[0].parent)  # and under theirs
    with on_disk(model, folder) as bench:
        stream = bench.ask(PROMPT, ENDLESS)
        assert (stream.tokens, cached(stream)) == (expected, 0)
        assert any("another model" in reason for _, reason in bench.reports)


def test_models_that_differ_in_their_weights_alone_share_a_folder_and_nothing_else(
    model: LoadedModel, sibling: LoadedModel, folder: Path
) -> None:
    with on_disk(sibling, folder) as bench:
        stream = bench.ask(PROMPT, ENDLESS)
        assert (stream.tokens, cached(stream)) == (alone(sibling, PROMPT), 0)
    assert len({path.parent for path in records(folder)}) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing_is_left_alone_for_a_while(
    model: LoadedModel, tmp_path: Path, expected: list[int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(prefix_folder, "write_record", refuse)
    with on_disk(model, tmp_path) as bench:
        assert bench.ask(PROMPT, ENDLESS).tokens == expected
        bench.settle()
        assert bench.ask(OTHER, ENDLESS).tokens == alone(model, OTHER)
        bench.settle()
        assert [what for what, _ in bench.reports] == ["refused"]
        assert bench.counts.written == bench.counts.pending == bench.counts.bytes == 0


def test_what_does_not_fit_on_the_disk_leaves_nothing_behind(
    model: LoadedModel, tmp_path: Path, expected: list[int]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with on_disk(model, tmp_path) as bench:
        assert bench.ask(PROMPT, ENDLESS).tokens == expected
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            bench.settle()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [what for what, _ in bench.reports] == ["refused"]
        assert [path for path in version_folder(tmp_path).rglob("*.*") if SUFFIX in path.name] == []


def test_a_folder_that_cannot_be_is_told_of_and_done_without(
    model: LoadedModel, tmp_path: Path, expected: list[int]
) -> None:
    (tmp_path / "file").touch()
    with on_disk(model, tmp_path / "file" / "cache") as bench:
        assert bench.ask(PROMPT, ENDLESS).tokens == expected
        bench.settle()
        assert bench.ask(PROMPT, ENDLESS).tokens == expected
    assert "refused" in [what for what, _ in bench.reports]


def test_a_disk_that_was_full_when_the_model_came_is_used_when_it_is_not_any_more(
    model: LoadedModel, tmp_path: Path, expected: list[int]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        bench = DiskBench(model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bench.ask(PROMPT, ENDLESS).tokens == expected
    bench.settle()
    bench.disk.close()
    assert bench.counts.written > 0


def test_a_folder_that_others_can_write_to_is_not_believed(
    model: LoadedModel, folder: Path, expected: list[int]
) -> None:
    records(folder)[0].parent.chmod(0o777)
    with on_disk(model, folder) as bench:
        stream = bench.ask(PROMPT, ENDLESS)
        assert (stream.tokens, cached(stream)) == (expected, 0)


def test_files_are_their_owners_alone(folder: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in records(folder)} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (version_folder(folder), records(folder)[0].parent)} == {0o700}


def test_a_folder_that_is_deleted_underneath_comes_back(model: LoadedModel, folder: Path, expected: list[int]) -> None:
    with on_disk(model, folder) as bench:
        shutil.rmtree(folder)
        assert bench.ask(PROMPT, ENDLESS).tokens == expected
        bench.settle()
        assert bench.ask(OTHER, ENDLESS).tokens == alone(model, OTHER)
    with on_disk(model, folder) as bench:
        for prompt in (PROMPT, OTHER):
            stream = bench.ask(prompt, ENDLESS)
            assert stream.tokens == alone(model, prompt)
            assert cached(stream) > 0


def test_two_servers_on_one_folder_use_what_either_has_written(model: LoadedModel, llama: Path, tmp_path: Path) -> None:
    other_model = load(llama)
    with on_disk(model, tmp_path) as one, on_disk(other_model, tmp_path) as other:
        for number in range(6):
            prompt = [*PROMPT, *token_ids(f" For the {number}th time: what is the answer to all of this?")]
            first, second = (one, other) if number % 2 else (other, one)
            assert first.ask(prompt, ENDLESS).tokens == alone(model, prompt)
            for bench in (first, second):
                bench.files.do(bench.files.glance)
                bench.settle()
            stream = second.ask(prompt, ENDLESS)
            assert stream.tokens == alone(model, prompt)
            assert cached(stream) >= len(prompt) - 2, "the second one reads what the first one wrote"
        # Each was written at the end of its prompt, and again with its answer, which replaces that.
        assert one.counts.written + other.counts.written == 2 * len(records(tmp_path)) == 12
        assert one.reports == other.reports == []


def test_two_servers_that_write_the_same_at_once_leave_it_whole(
    model: LoadedModel, llama: Path, tmp_path: Path
) -> None:
    with on_disk(model, tmp_path) as one, on_disk(load(llama), tmp_path) as other:
        for bench in (one, other):
            bench.ask(PROMPT, ENDLESS)  # both compute it, both write it
    with on_disk(model, tmp_path) as bench:
        assert cached(bench.ask(PROMPT, ENDLESS)) > 0
        assert bench.reports == []


def test_what_another_server_has_deleted_is_computed(model: LoadedModel, folder: Path, expected: list[int]) -> None:
    with on_disk(model, folder) as bench:
        for path in records(folder):
            path.unlink()
        stream = bench.ask(PROMPT, ENDLESS)
        assert (stream.tokens, cached(stream)) == (expected, 0)
        assert bench.reports == []


def test_no_more_is_kept_than_may_be(model: LoadedModel, tmp_path: Path) -> None:
    policy = DiskPolicy(max_bytes=200_000, preload_bytes=0)
    prompts = [token_ids(f"{number}. A question of its own, that nobody has asked before?") for number in range(8)]
    for prompt in prompts:
        with on_disk(model, tmp_path, policy) as bench:
            assert bench.ask(prompt, ENDLESS).tokens == alone(model, prompt)
        assert sum(path.stat().st_size for path in records(tmp_path)) <= 200_000
    assert len(records(tmp_path)) >= 2
    with on_disk(model, tmp_path, policy) as bench:
        assert cached(bench.ask(prompts[-1], ENDLESS)) > 0, "the last one is there"


def test_what_was_not_used_for_too_long_goes(model: LoadedModel, folder: Path, expected: list[int]) -> None:
    for path in records(folder):
        os.utime(path, (0, 0))
    with on_disk(model, folder, DiskPolicy(max_bytes=1 << 30, max_age_s=3600, preload_bytes=0)) as bench:
        stream = bench.ask(PROMPT, ENDLESS)
        assert (stream.tokens, cached(stream)) == (expected, 0)


def test_what_a_dead_process_left_half_written_goes(model: LoadedModel, folder: Path) -> None:
    record = records(folder)[0]
    old, fresh = (record.with_name(f".{record.stem}.{end}") for end in ("left", "busy"))
    for path in (old, fresh):
        path.touch()
    os.utime(old, (0, 0))
    with on_disk(model, folder):
        pass
    assert (old.exists(), fresh.exists()) == (False, True)


def test_files_with_other_names_are_left(model: LoadedModel, folder: Path) -> None:
    other = records(folder)[0].with_name("model.safetensors")
    other.touch()
    with on_disk(model, folder) as bench:
        assert bench.counts.damaged == 0
    assert other.exists()


def test_a_prompt_that_is_cheaper_to_compute_does_not_wait(
    model: LoadedModel, folder: Path, expected: list[int]
) -> None:
    with on_disk(model, folder) as bench:
        bench.prefill_s = lambda model, start, count: 1e-9
        stream = bench.ask(PROMPT, ENDLESS)
        assert (stream.tokens, cached(stream)) == (expected, 0)


def test_a_disk_that_hangs_holds_nobody_up_for_longer_than_computing_takes(
    model: LoadedModel, folder: Path, expected: list[int]
) -> None:
    held, over = threading.Event(), threading.Event()

    def hang() -> None:
        held.set()
        over.wait(60)

    with on_disk(model, folder) as bench:
        bench.prefill_s = lambda model, start, count: 0.05
        bench.files.do(hang)
        assert held.wait(60)
        stream = bench.ask(PROMPT, ENDLESS)
        assert (stream.tokens, cached(stream)) == (expected, 0)
        over.set()
