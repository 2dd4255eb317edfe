from __future__ import annotations

import gc
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Whoever runs the tests in the background ignores Ctrl-C, and every process that a test starts would do so, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    _settle()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    result = yield
    if nextitem is None or nextitem.path != item.path:
        _settle()
    return result


def _settle() -> None:
    """What thousands of tests leave in memory is looked through once, not whenever a later one collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random llama with a byte-level tokenizer and a context of 4096 tokens."""
    from .tiny_models import make_llama  # imports MLX, which most tests do without

    return make_llama(tmp_path_factory.mktemp("models") / "tiny", context_length=4096)
