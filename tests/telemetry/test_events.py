"""The event bus: order, isolation, leaving."""

from __future__ import annotations

import time

import pytest

from mlx_serving.telemetry.events import Event, EventBus, ModelUnloaded

EVENT = ModelUnloaded(model_id="m")


def test_listeners_are_called_in_the_order_of_subscription() -> None:
    bus, calls = EventBus(), list[str]()
    bus.subscribe(lambda _: calls.append("first"))
    bus.subscribe(lambda _: calls.append("second"))
    bus.publish(EVENT)
    assert calls == ["first", "second"]


def test_a_listener_that_raises_is_logged_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    bus, heard = EventBus(), list[Event]()

    def fail(event: Event) -> None:
        raise ValueError(event.name)

    bus.subscribe(fail)
    bus.subscribe(heard.append)
    bus.publish(EVENT)
    assert heard == [EVENT]
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "mlx_serving.events")
    assert "event listener failed" in record.getMessage()
    assert "model:unloaded" in record.getMessage()


def test_who_has_left_hears_nothing_more() -> None:
    bus, heard = EventBus(), list[Event]()
    leave = bus.subscribe(heard.append)
    bus.publish(EVENT)
    leave()
    leave()
    bus.publish(EVENT)
    assert heard == [EVENT]


def test_a_listener_may_leave_while_it_listens() -> None:
    bus, heard = EventBus(), list[Event]()

    def once(event: Event) -> None:
        leave()
        heard.append(event)

    leave = bus.subscribe(once)
    bus.subscribe(heard.append)
    bus.publish(EVENT)
    assert heard == [EVENT, EVENT]
    bus.publish(EVENT)
    assert len(heard) == 3


def test_events_know_when_they_happened() -> None:
    before = time.time()
    assert before <= ModelUnloaded(model_id="m").at <= time.time()
