"""The engine without `await`."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from mlx_serving import SyncEngine
from mlx_serving.errors import EngineClosed, InvalidRequest, ModelNotFound, WorkerDied

from .embedding import NO_SPECIAL_TOKENS, configuration


@pytest.fixture(scope="module")
def sync(tiny_model: Path) -> Generator[SyncEngine]:
    with SyncEngine(configuration(tiny_model)) as engine:
        yield engine


def greedy(max_tokens: int = 8) -> dict[str, object]:
    return {"model": "tiny", "max_tokens": max_tokens, "temperature": 0, "logit_bias": NO_SPECIAL_TOKENS}


def ask(engine: SyncEngine, max_tokens: int = 8) -> str:
    return engine.generate("Hello", model="tiny", max_tokens=max_tokens, temperature=0, logit_bias=NO_SPECIAL_TOKENS)


def test_it_generates_streams_and_tokenizes(sync: SyncEngine) -> None:
    text = ask(sync)
    assert len(text) > 0
    assert "".join(sync.stream("Hello", **greedy())) == text  # pyright: ignore[reportArgumentType]  `model` is among them
    assert sync.load_model("tiny").id == "tiny"
    assert len(sync.tokenize("abc", model="tiny")) == 3
    assert [model.id for model in sync.list_models()] == ["tiny"]
    assert len(sync.generate([{"role": "user", "content": "Hi"}], model="tiny", max_tokens=2)) >= 0


def test_many_are_answered_in_one_call(sync: SyncEngine) -> None:
    answers = sync.batch_generate(["Hello", [{"role": "user", "content": "Hi"}]], **greedy())  # pyright: ignore[reportArgumentType]
    assert answers[0].unwrap().text == ask(sync)
    assert answers[1].success
    ids = [entry.unwrap().tokens for entry in sync.batch_tokenize(["abc", ""], model="tiny")]
    assert ids == [sync.tokenize("abc", model="tiny"), []]
    assert sync.count_tokens("abc", model="tiny") == 3
    told = sync.get_telemetry()
    assert told.runtime is not None
    assert told.runtime.generation.calls >= 2


def test_leaving_a_stream_early_aborts_it(sync: SyncEngine) -> None:
    for _ in sync.stream("Hello", **greedy(4000)):  # pyright: ignore[reportArgumentType]
        break
    assert len(ask(sync)) > 0  # nothing is in its way


def test_errors_are_raised_where_the_call_is(sync: SyncEngine) -> None:
    with pytest.raises(ModelNotFound):
        sync.generate("Hello", model="nobody")
    with pytest.raises(ModelNotFound):
        list(sync.stream("Hello", model="nobody"))
    with pytest.raises(InvalidRequest):
        sync.generate("Hello", model="tiny", max_tokens=0)


async def test_it_works_inside_of_a_running_loop(sync: SyncEngine) -> None:
    assert asyncio.get_running_loop().is_running()
    assert len(ask(sync)) > 0


def test_threads_can_share_it(sync: SyncEngine) -> None:
    expected, results = ask(sync), list[str]()
    threads = [threading.Thread(target=lambda: results.append(ask(sync))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_close_ends_worker_and_thread_and_may_be_called_twice(tiny_model: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    children = set(psutil.Process().children())
    engine = SyncEngine(configuration(tiny_model))
    pieces = engine.stream("Hello", **greedy(4000))  # pyright: ignore[reportArgumentType]
    next(pieces)
    engine.close()
    engine.close()
    assert set(psutil.Process().children()) <= children
    assert {thread.name for thread in threading.enumerate()} - before <= {"asyncio-waitpid-0"}
    with pytest.raises(EngineClosed):
        ask(engine)
    with pytest.raises((EngineClosed, WorkerDied)):
        list(pieces)


def test_a_worker_that_cannot_be_started_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(WorkerDied, match="cannot be started"):
        SyncEngine({"worker": {"python": str(tmp_path / "missing"), "max_restarts": 0}})
    with pytest.raises(ValueError, match="nonsense"):
        SyncEngine({"nonsense": {}})
    assert threading.active_count() == before


INTERRUPTED = """
import sys
from mlx_serving import SyncEngine
config = {{"models": {{"served": [{{"model": {model!r}, "name": "tiny", "preload": False}}]}}}}
bias = {{token: -100.0 for token in range(256, 259)}}
with SyncEngine(config) as engine:
    for call in ("stream", "generate"):
        try:
            if call == "stream":
                for piece in engine.stream("Hello", model="tiny", max_tokens=4000, logit_bias=bias):
                    print("streaming", flush=True)
            else:
                print("streaming", flush=True)
                engine.generate("Hello", model="tiny", max_tokens=4000, logit_bias=bias)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    print(len(engine.tokenize("abc", model="tiny")), flush=True)
    print("streaming", flush=True)
    engine.generate("Hello", model="tiny", max_tokens=4000, logit_bias=bias)
"""


def test_ctrl_c_ends_the_call_and_leaves_the_engine_usable_and_closes_it_in_the_end(tiny_model: Path) -> None:
    program = INTERRUPTED.format(model=str(tiny_model))
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "streaming\n"
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        while process.stdout.readline() != "interrupted\n":
            pass
        assert process.stdout.readline() == "streaming\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.stdout.readline() == "3\n"
        assert process.stdout.readline() == "streaming\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert output == ""
    assert process.returncode == -signal.SIGINT
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert errors.count("Traceback") == 1
    assert "Warning" not in errors
    assert not any(worker.is_running() for worker in workers)
