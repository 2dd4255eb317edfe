"""`on`, `once`, `off`, `emit`, and what an engine tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_serving import Engine
from mlx_serving.facade.emitter import Emitter
from mlx_serving.telemetry.events import (
    Event,
    EventBus,
    GenerationCompleted,
    GenerationToken,
    ModelUnloaded,
    RuntimeStatusChanged,
)

from .embedding import configuration, params

UNLOADED = ModelUnloaded(model_id="m")
TOKEN = GenerationToken(stream_id="s", token="t")


@pytest.fixture
def emitter() -> Emitter:
    return Emitter(EventBus())


def test_on_hears_its_event_every_time_and_no_other(emitter: Emitter) -> None:
    heard: list[Event] = []
    emitter.on("model:unloaded", heard.append)
    for event in (UNLOADED, TOKEN, UNLOADED):
        emitter.emit(event)
    assert heard == [UNLOADED, UNLOADED]


def test_a_star_hears_everything(emitter: Emitter) -> None:
    heard: list[Event] = []
    emitter.on("*", heard.append)
    emitter.emit(UNLOADED)
    emitter.emit(TOKEN)
    assert heard == [UNLOADED, TOKEN]
    assert emitter.listens("anything")


def test_once_hears_one_event(emitter: Emitter) -> None:
    heard: list[Event] = []
    emitter.once("model:unloaded", heard.append)
    assert emitter.listens("model:unloaded")
    emitter.emit(UNLOADED)
    emitter.emit(UNLOADED)
    assert heard == [UNLOADED]
    assert not emitter.listens("model:unloaded")


def test_once_hears_one_event_even_if_a_listener_emits_another(
    emitter: Emitter, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []
    emitter.once("model:unloaded", lambda _: emitter.emit(ModelUnloaded(model_id="inner")))
    emitter.once("model:unloaded", heard.append)
    emitter.emit(UNLOADED)
    assert [event.model_id for event in heard if isinstance(event, ModelUnloaded)] == ["inner"]
    assert caplog.records == []


def test_off_forgets_one_callback_or_all(emitter: Emitter) -> None:
    one: list[Event] = []
    two: list[Event] = []
    forget, keep = one.append, two.append
    emitter.on("model:unloaded", forget)
    emitter.on("model:unloaded", keep)
    emitter.off("model:unloaded", forget)
    emitter.emit(UNLOADED)
    assert (one, two) == ([], [UNLOADED])
    emitter.off("model:unloaded")
    emitter.off("model:unloaded", keep)
    emitter.off("never heard of")
    emitter.emit(UNLOADED)
    assert two == [UNLOADED]


def test_a_callback_that_raises_does_not_disturb_the_others(emitter: Emitter) -> None:
    heard: list[Event] = []

    def fail(event: Event) -> None:
        raise ValueError(event.name)

    emitter.on("model:unloaded", fail)
    emitter.on("model:unloaded", heard.append)
    emitter.emit(UNLOADED)
    assert heard == [UNLOADED]


async def test_an_engine_tells_of_its_life(tiny_model: Path) -> None:
    heard: list[str] = []
    statuses: list[tuple[str, str]] = []
    engine = Engine(configuration(tiny_model))
    engine.on("*", lambda event: heard.append(event.name))

    def note(event: Event) -> None:
        assert isinstance(event, RuntimeStatusChanged)
        statuses.append((event.previous_status, event.status))

    engine.on("runtime:status", note)
    await engine.start()
    await engine.load_model("tiny")
    await engine.generate(params())
    await engine.unload_model("tiny")
    await engine.shutdown()
    assert statuses[:2] == [("stopped", "starting"), ("starting", "ready")]
    assert statuses[-1][1] == "stopped"
    assert [name for name in heard if not name.startswith(("runtime", "model:progress"))] == [
        "model:loaded",
        "generation:started",
        "generation:completed",
        "model:unloaded",
    ]


async def test_tokens_are_told_to_those_who_ask_for_them(engine: Engine) -> None:
    tokens: list[Event] = []
    completed: list[Event] = []
    engine.on("generation:token", tokens.append)
    engine.once("generation:completed", completed.append)
    chunks = [chunk async for chunk in engine.create_generator(params(), {"stream_id": "told"})]
    engine.off("generation:token")
    assert len(tokens) == len(chunks) - 1
    assert {event.stream_id for event in tokens if isinstance(event, GenerationToken)} == {"told"}
    (ended,) = completed
    assert isinstance(ended, GenerationCompleted)
    assert ended.stats.tokens_generated == 8
