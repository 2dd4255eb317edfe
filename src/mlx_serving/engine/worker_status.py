"""What the states of a worker are called outside."""

from __future__ import annotations

from typing import assert_never

from mlx_serving.core import worker_lifecycle as lifecycle
from mlx_serving.core.worker_lifecycle import WorkerState
from mlx_serving.telemetry.events import RuntimeStatus


def name_of(state: WorkerState) -> str:
    """As health reports and events call it."""
    match state:
        case lifecycle.Stopped():
            return "stopped"
        case lifecycle.Starting():
            return "starting"
        case lifecycle.Ready():
            return "ready"
        case lifecycle.Draining():
            return "draining"
        case lifecycle.BackingOff():
            return "backing off"
        case lifecycle.GaveUp():
            return "gave up"
        case _:
            assert_never(state)


def status_of(state: WorkerState) -> RuntimeStatus:
    """What that means to whoever only wants to know whether the runtime serves."""
    match state:
        case lifecycle.Stopped():
            return "stopped"
        case lifecycle.Ready():
            return "ready"
        case lifecycle.Starting() | lifecycle.BackingOff():
            return "starting"
        case lifecycle.Draining():
            return "stopped" if not state.restart else "starting"
        case lifecycle.GaveUp():
            return "error"
        case _:
            assert_never(state)
