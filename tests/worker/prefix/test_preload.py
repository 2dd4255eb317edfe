"""What was used last is in memory before anybody asks for it, as far as there is room."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mlx_serving.core.prefix.disk import DiskPolicy
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.prefix.files import Reading

from ...tiny_models import make_llama, token_ids
from ..bench import load
from ..test_model_runner import ARCHITECTURES
from .disk_bench import DiskBench, on_disk, records
from .test_disk import ENDLESS, PROMPT, SYSTEM, alone, cached

PRELOADING = DiskPolicy(max_bytes=1 << 30, preload_bytes=1 << 30)
SYSTEM_TOKENS = token_ids(SYSTEM)
OTHER = token_ids("Another prompt altogether, which begins with other tokens and is a little long.")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(make_llama(tmp_path_factory.mktemp("plain") / "model", context_length=2048))


def kept(bench: DiskBench, prompt: list[int]) -> int:
    """How much of a prompt is in memory."""
    chain = bench.prefixes.chain_of(bench.model.model_id, prompt, "", "")
    assert chain is not None
    return bench.prefixes.tokens_of(chain)


def preloaded(bench: DiskBench, prompt: list[int], least: int) -> int:
    """The same, once it is at least so much."""
    while (count := kept(bench, prompt)) < least:
        bench.settle()
    return count


def wait_behind(bench: DiskBench) -> None:
    """Until all was read that nobody has asked for and that waits now."""
    over: list[bool] = []
    nothing = Reading("0" * 40, "0" * 40, b"", "blocks", 0, lambda part: None, lambda: over.append(True), can_wait=True)
    bench.files.read(nothing)
    while not over:
        bench.settle()


def test_the_first_request_finds_in_memory_what_the_last_server_computed(model: LoadedModel, tmp_path: Path) -> None:
    with on_disk(model, tmp_path) as bench:
        answer = bench.ask(PROMPT, ENDLESS).tokens
    history = [*PROMPT, *answer, *token_ids(" And then?")]
    with on_disk(model, tmp_path, PRELOADING) as bench:
        preloaded(bench, history, len(PROMPT))
        assert not bench.disk.read_ahead(model.model_id, history, "", "", lambda: None)
        stream = bench.ask(history, ENDLESS)
        assert stream.tokens == alone(model, history)
        assert cached(stream) >= len(PROMPT)
        assert bench.counts.read >= 1
        assert bench.reports == []


def test_what_was_used_last_comes_first_and_half_of_the_room_is_left(plain: LoadedModel, tmp_path: Path) -> None:
    prompts = [token_ids(f"{number}. {SYSTEM * 4}") for number in range(4)]
    size = 0
    for prompt in prompts:
        with on_disk(plain, tmp_path) as bench:
            bench.ask(prompt, ENDLESS)
            size = bench.prefixes.nbytes
        for number, path in enumerate(sorted(records(tmp_path), key=os.path.getmtime)):
            os.utime(path, (path.stat().st_mtime - 100, path.stat().st_mtime - 100 + number))
    with on_disk(plain, tmp_path, PRELOADING, memory_bytes=5 * size) as bench:
        preloaded(bench, prompts[2], 100)
        assert [kept(bench, prompt) > 100 for prompt in prompts] == [False, False, True, True]
        assert bench.prefixes.nbytes <= 2.5 * size
        # Who needs the room gets what was used least lately, as if it had never been elsewhere.
        for number in range(4):
            bench.ask(token_ids(f"{number} is {SYSTEM * 4}"), ENDLESS)
        assert [kept(bench, prompt) > 100 for prompt in prompts[2:]] == [False, True]


def test_nothing_is_read_where_nothing_may_be(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS)
    for policy, memory_bytes in ((DiskPolicy(1 << 30, preload_bytes=0), None), (PRELOADING, 0)):
        with on_disk(plain, tmp_path, policy, memory_bytes=memory_bytes) as bench:
            for _ in range(3):
                bench.settle()
            assert (bench.counts.read, kept(bench, PROMPT)) == (0, 0)


def test_to_be_read_before_anybody_asks_is_no_use(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS)
    for path in records(tmp_path):
        an_hour_ago = path.stat().st_mtime - 3600
        os.utime(path, (an_hour_ago, an_hour_ago))
    before = [path.stat().st_mtime for path in records(tmp_path)]
    with on_disk(plain, tmp_path, PRELOADING) as bench:
        preloaded(bench, PROMPT, len(PROMPT) - 1)
    assert [path.stat().st_mtime for path in records(tmp_path)] == before


def test_a_damaged_file_is_found_out_before_anybody_asks(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS)
        bench.ask(OTHER, ENDLESS)
    damaged = max(records(tmp_path), key=os.path.getmtime)
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    with on_disk(plain, tmp_path, PRELOADING) as bench:
        while not bench.reports:
            bench.settle()
        assert [what for what, _ in bench.reports] == ["damaged"]
        assert not damaged.exists()
        for prompt in (PROMPT, OTHER):
            assert bench.ask(prompt, ENDLESS).tokens == alone(plain, prompt)


def test_whoever_asks_does_not_wait_for_what_nobody_has_asked_for(plain: LoadedModel, tmp_path: Path) -> None:
    long = token_ids(SYSTEM * 25)
    with on_disk(plain, tmp_path) as bench:
        bench.ask(long, ENDLESS)
        bench.ask(OTHER, ENDLESS)
    with on_disk(plain, tmp_path, DiskPolicy(1 << 30, preload_bytes=0)) as bench:
        held, over = threading.Event(), threading.Event()

        def hang() -> None:
            held.set()
            over.wait(60)

        bench.files.do(hang)
        assert held.wait(60)
        # Both wait for the thread now; what nobody waits for was asked for first.
        order: list[str] = []
        bench.disk.preload(plain.model_id, 1 << 30)
        assert bench.disk.read_ahead(plain.model_id, OTHER, "", "", lambda: order.append(f"{kept(bench, long)}"))
        over.set()
        while kept(bench, long) < len(long) - 1:
            bench.settle()
        assert order == ["0"]


def test_a_model_that_goes_is_read_no_further(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS)
        bench.ask(OTHER, ENDLESS)
    with on_disk(plain, tmp_path) as bench:
        bench.disk.preload(plain.model_id, 1 << 30)
        bench.disk.remove_model(plain.model_id)
        bench.disk.preload(plain.model_id, 1 << 30)
        for _ in range(3):
            bench.settle()
        assert bench.counts.read <= 1


def test_what_one_model_has_computed_is_not_read_for_another_that_takes_its_name(
    plain: LoadedModel, tmp_path: Path
) -> None:
    heir = load(make_llama(tmp_path / "heir", context_length=2048, seed=1), model_id=plain.model_id)
    folder = tmp_path / "cache"
    with on_disk(heir, folder) as bench:
        bench.ask(SYSTEM_TOKENS, ENDLESS)
    with on_disk(plain, folder) as bench:
        bench.ask(PROMPT, ENDLESS)
        bench.ask(OTHER, ENDLESS)
    with on_disk(plain, folder) as bench:
        bench.disk.preload(plain.model_id, 1 << 30)
        # Before it is told that the first of the two was read, the other model is there.
        bench.disk.remove_model(plain.model_id)
        bench.prefixes.remove_model(plain.model_id)
        bench.prefixes.add_model(plain.model_id, heir.fingerprint, exact=False)
        bench.disk.add_model(heir)
        for _ in range(3):
            wait_behind(bench)
        assert [kept(bench, prompt) for prompt in (PROMPT, OTHER)] == [0, 0]
        assert bench.prefixes.nbytes == 0


def test_a_model_that_goes_before_anything_was_looked_for_is_not_looked_for(plain: LoadedModel, tmp_path: Path) -> None:
    with on_disk(plain, tmp_path) as bench:
        bench.ask(PROMPT, ENDLESS)
    with on_disk(plain, tmp_path) as bench:
        bench.disk.remove_model(plain.model_id)
        bench.prefixes.remove_model(plain.model_id)
        bench.disk.preload(plain.model_id, 1 << 30)
        wait_behind(bench)
        assert bench.counts.read == 0
