"""What events look like as log lines, for machines and for people; and what never appears in one."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator
from typing import Any, TypeAlias

import pytest

from mlx_serving.config.schema import Config
from mlx_serving.core.generation import GenerationStats
from mlx_serving.errors import ModelLoadError
from mlx_serving.telemetry import logs
from mlx_serving.telemetry.events import (
    CircuitChanged,
    ErrorOccurred,
    Event,
    GenerationCompleted,
    GenerationStarted,
    GenerationToken,
    MemoryShareChanged,
    ModelInvalidated,
    ModelLoaded,
    ModelProgressed,
    ModelUnloaded,
    ModelVersionChanged,
    RuntimeStatusChanged,
)
from mlx_serving.telemetry.logger import LIBRARY, get_logger

Capture: TypeAlias = pytest.CaptureFixture[str]

STATS = GenerationStats(1, 2, 0.1, 20.0, 0.2)
EVENTS: list[tuple[Event, str, dict[str, object]]] = [
    (
        RuntimeStatusChanged(status="ready", previous_status="starting", state="ready", pid=7),
        "info",
        {"event": "runtime:status", "status": "ready", "previous_status": "starting", "pid": 7},
    ),
    (ModelLoaded(model_id="m", context_length=9, seconds=0.5), "info", {"event": "model:loaded", "seconds": 0.5}),
    (ModelUnloaded(model_id="m"), "info", {"event": "model:unloaded", "model_id": "m"}),
    (ModelInvalidated(model_id="m", reason="worker_restart"), "info", {"reason": "worker_restart"}),
    (ModelVersionChanged(model_id="m", reference="r", revision=None), "info", {"reference": "r"}),
    (CircuitChanged(previous="closed", current="open"), "warning", {"previous": "closed", "current": "open"}),
    (
        MemoryShareChanged(previous=1.0, current=0.75, reason="killed"),
        "warning",
        {"event": "memory:share", "previous": 1.0, "current": 0.75, "reason": "killed"},
    ),
    (
        ErrorOccurred(error=ModelLoadError("no", path="p"), context="loading m"),
        "error",
        {"event": "error", "code": "ModelLoadError", "message": "no", "context": "loading m"},
    ),
    (GenerationStarted(stream_id="s", model_id="m"), "debug", {"stream_id": "s"}),
    (GenerationToken(stream_id="s", token="t"), "debug", {"event": "generation:token"}),
    (GenerationCompleted(stream_id="s", stats=STATS), "debug", {"stream_id": "s"}),
    (ModelProgressed(model_id="m", stage="reading", done=1, total=2), "debug", {"stage": "reading", "done": 1}),
]


@pytest.fixture(autouse=True)
def loggers_as_before() -> Generator[None]:
    root, library = logging.getLogger(), logging.getLogger(LIBRARY)
    before = root.handlers, root.level, library.level
    yield
    root.handlers = before[0]
    root.setLevel(before[1])
    library.setLevel(before[2])


def lines(capsys: Capture) -> list[dict[str, Any]]:
    """What was written on stderr, which is no terminal here."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(("event", "level", "expected"), EVENTS)
def test_every_event_is_one_line_of_json(
    event: Event, level: str, expected: dict[str, object], capsys: Capture
) -> None:
    logs.configure("debug", "json")
    logs.log_event(event)
    (line,) = lines(capsys)
    assert line["level"] == level
    assert expected.items() <= line.items()
    assert "timestamp" in line


@pytest.mark.parametrize(("least", "expected"), [("debug", len(EVENTS)), ("info", 8), ("warning", 3), ("error", 1)])
def test_the_level_decides_what_is_written(least: logs.Level, expected: int, capsys: Capture) -> None:
    logs.configure(least, "auto")
    for event, _, _ in EVENTS:
        logs.log_event(event)
    assert len(lines(capsys)) == expected


def test_for_people_lines_are_readable(capsys: Capture) -> None:
    logs.configure("info", "console")
    logs.log_event(CircuitChanged(previous="closed", current="open"))
    text = capsys.readouterr().err
    assert "circuit:changed" in text
    assert "closed" in text
    assert not text.startswith("{")


def test_exceptions_are_part_of_the_line(capsys: Capture) -> None:
    logs.configure("info", "json")
    try:
        raise ValueError("what happened")
    except ValueError:
        get_logger("mlx_serving.test").exception("failed")
    (line,) = lines(capsys)
    assert "what happened" in line["exception"]


def test_records_of_other_libraries_come_from_warning_on(capsys: Capture) -> None:
    logs.configure("debug", "json")
    logging.getLogger("somebody.else").info("quiet")
    logging.getLogger("somebody.else").warning("loud %s", "words")
    assert [line["event"] for line in lines(capsys)] == ["loud words"]


def test_a_library_that_nobody_configured_writes_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    logs.log_event(ModelUnloaded(model_id="m"))
    assert capfd.readouterr() == ("", "")


def test_secrets_of_the_configuration_never_reach_a_line(capsys: Capture) -> None:
    config = Config.model_validate({"server": {"api_key": "key-of-clients", "admin_key": "key-of-admins"}})
    for output in ("json", "console"):
        logs.configure("debug", output)
        get_logger("mlx_serving.test").info("configuration", config=config, server=config.server)
        get_logger("mlx_serving.test").info("keys", keys=[config.server.api_key, config.server.admin_key])
    text = capsys.readouterr().err
    assert "configuration" in text
    assert "key-of" not in text
