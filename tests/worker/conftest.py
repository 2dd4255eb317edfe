from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import tiny_models
from .driver import WorkerProcess


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workers' cache directory."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def speller(models: Path) -> Path:
    return tiny_models.make_speller(models / "speller")


@pytest.fixture(scope="session")
def endless(models: Path) -> Path:
    """The speller with a context that no test fills."""
    return tiny_models.make_speller(models / "endless", context_length=1_000_000)


@pytest.fixture(scope="session")
def llama(models: Path) -> Path:
    return tiny_models.make_llama(models / "llama")


@pytest.fixture(scope="session")
def quantised(models: Path) -> Path:
    return tiny_models.make_llama(models / "quantised", bits=4)


@pytest.fixture(scope="session")
def untemplated(models: Path) -> Path:
    """A model without a chat template, whose own file says that it does not sample."""
    return tiny_models.make_llama(
        models / "untemplated", chat_template=None, generation_config={"do_sample": False, "temperature": 1.5}
    )


@pytest.fixture(scope="session")
def qwen3(models: Path) -> Path:
    return tiny_models.make_qwen3(models / "qwen3")


@pytest.fixture(scope="session")
def gemma3(models: Path) -> Path:
    return tiny_models.make_gemma3(models / "gemma3")


@pytest.fixture(scope="session")
def lfm2(models: Path) -> Path:
    return tiny_models.make_lfm2(models / "lfm2")


@pytest.fixture(scope="session")
def mamba(models: Path) -> Path:
    return tiny_models.make_mamba(models / "mamba")


@pytest.fixture(scope="session")
def llama4(models: Path) -> Path:
    return tiny_models.make_llama4(models / "llama4")


@pytest.fixture(scope="session")
def running_worker(cache: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess.by_hand(cache) as process:
        yield process


@pytest.fixture
def worker(running_worker: WorkerProcess, speller: Path) -> WorkerProcess:
    """A process that many tests share, so each proves that those before it left no harm. It has `speller` loaded."""
    running_worker.call("load_model", model_id=str(speller))
    running_worker.forget()
    return running_worker
