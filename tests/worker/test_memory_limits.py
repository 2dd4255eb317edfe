"""A real process with little memory: what does not fit is refused, and the rest is served."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ..tiny_models import SPELLED, write_hole
from .driver import WorkerProcess

MIB = 1 << 20
LIMIT = 8 * MIB
WEIGHTS = 8 << 40


@pytest.fixture(scope="module")
def small(cache: Path, speller: Path) -> Iterator[WorkerProcess]:
    settings = {"memory": {"share": 1.0, "limit_bytes": LIMIT, "buffer_cache_bytes": MIB, "prefill_bytes": MIB}}
    with WorkerProcess.by_hand(cache, settings) as worker:
        worker.call("load_model", model_id=str(speller))
        yield worker


@pytest.fixture(scope="module")
def huge(models: Path, speller: Path) -> Path:
    """A model of more bytes than machines have, all of which but a few are holes in a file. It cannot be read."""
    directory = shutil.copytree(speller, models / "huge")
    write_hole(directory / "model-00002.safetensors", WEIGHTS)
    return directory


def test_the_worker_tells_what_it_plans_with(small: WorkerProcess) -> None:
    memory = small.call("runtime/info")["memory"]
    weights = 4 * 107_200
    assert (memory["capacity"], memory["limited_by"], memory["weights"]) == (LIMIT, "memory.limit_bytes", weights)
    assert 0 < memory["kv_budget"] <= LIMIT - weights - 2 * MIB


def test_a_model_that_does_not_fit_is_refused_with_the_numbers_and_disturbs_nobody(
    small: WorkerProcess, speller: Path, huge: Path
) -> None:
    stream = small.generate(model_id=str(speller), prompt="a")
    refused = small.refusal("load_model", model_id=str(huge))
    assert (refused.code, refused.type) == (-32001, "InsufficientMemory")
    assert refused.details["weights_bytes"] > WEIGHTS
    assert refused.details["capacity_bytes"] == LIMIT
    assert refused.details["limited_by"] == "memory.limit_bytes"
    assert small.text(stream) == SPELLED[1:]
    assert [model["model_id"] for model in small.call("runtime/state")["loaded_models"]] == [str(speller)]


def test_unloading_makes_room(small: WorkerProcess, speller: Path, llama: Path) -> None:
    before = small.call("runtime/info")["memory"]["weights"]
    small.call("load_model", model_id=str(llama))
    assert small.call("runtime/info")["memory"]["weights"] > before
    small.call("unload_model", model_id=str(llama))
    assert small.call("runtime/info")["memory"]["weights"] == before


def test_an_overload_is_served_one_after_the_other(small: WorkerProcess, speller: Path) -> None:
    streams = [small.generate(model_id=str(speller), prompt="a" * 200) for _ in range(30)]
    assert [small.text(stream) for stream in streams] == [SPELLED[1:]] * 30
    assert small.process.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of other processes can be set on Linux only")
def test_a_resource_limit_is_respected(cache: Path, speller: Path, huge: Path) -> None:
    with WorkerProcess.by_hand(cache) as worker:
        worker.call("load_model", model_id=str(speller))
        worker.text(worker.generate(model_id=str(speller), prompt="a" * 200))
        taken = psutil.Process(worker.process.pid).memory_info().data
        resource.prlimit(worker.process.pid, resource.RLIMIT_DATA, (taken + 32 * MIB, resource.RLIM_INFINITY))
        refused = worker.refusal("load_model", model_id=str(huge))
        assert refused.type == "InsufficientMemory"
        assert refused.details["limited_by"] == "RLIMIT_DATA"
        streams = [worker.generate(model_id=str(speller), prompt="a" * 200) for _ in range(30)]
        assert [worker.text(stream) for stream in streams] == [SPELLED[1:]] * 30
        assert worker.process.poll() is None
        memory = worker.call("runtime/info")["memory"]
        assert memory["limited_by"] == "RLIMIT_DATA"
        assert memory["capacity"] < taken + 32 * MIB
