"""Files of models that are likely to be wanted next."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlx_serving.engine.prefetch import Prefetch
from mlx_serving.telemetry.events import EventBus, ModelPrefetched

from ..event_log import EventLog


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


async def test_what_is_likely_next_is_read(directory: Path) -> None:
    log = EventLog(bus := EventBus())
    prefetch = Prefetch({"b": directory}.get, bus)
    for model in "ababa":
        prefetch.used(model)
    prefetch.used("a")
    await prefetch.close()
    assert [(event.model_id, event.size_bytes) for event in log.of(ModelPrefetched)] == [("b", 1000)]


async def test_nothing_is_read_that_is_in_memory_or_unknown_or_not_to_be(directory: Path) -> None:
    log = EventLog(bus := EventBus())
    unknown, unwanted = Prefetch(lambda _: None, bus), Prefetch({"b": directory}.get, bus)
    unwanted.enabled = False
    for prefetch in (unknown, unwanted):
        for model in "abababa":
            prefetch.used(model)
        await prefetch.close()
    assert log.events == []


async def test_what_cannot_be_read_disturbs_nobody(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    log = EventLog(bus := EventBus())
    prefetch = Prefetch({"b": tmp_path}.get, bus)
    for model in "abababa":
        prefetch.used(model)
        await asyncio.sleep(0)
    await prefetch.close()
    assert log.events == []


async def test_memory_that_is_short_is_left_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        available, total = 2000, 20_000

    monkeypatch.setattr("mlx_serving.engine.prefetch.psutil.virtual_memory", Short)
    log = EventLog(bus := EventBus())
    prefetch = Prefetch({"b": directory}.get, bus)
    (directory / "more.safetensors").write_bytes(b"y" * 500)
    for model in "abababa":
        prefetch.used(model)
    await prefetch.close()
    assert log.events == []
