"""Many workers come and go; nothing of them stays."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from mlx_serving.errors import WorkerGaveUp

from ..event_log import EventLog
from .harness import send, supervised, zombies
from .stand_ins import GOOD, stand_in


async def test_twenty_deaths_leave_no_zombie_and_no_file_descriptor(tmp_path: Path) -> None:
    async with supervised(stand_in(tmp_path, GOOD), max_restarts=1000) as (supervisor, bus):
        log = EventLog(bus)
        await supervisor.client()
        before = psutil.Process().num_fds()
        for count in range(2, 22):
            send(supervisor.health().pid, signal.SIGKILL)
            await log.wait_for_state("ready", count)
        assert psutil.Process().num_fds() <= before
        assert zombies() == []
        assert supervisor.health().restarts == 20


async def test_planned_restarts_leave_none_either(tmp_path: Path) -> None:
    async with supervised(stand_in(tmp_path, GOOD)) as (supervisor, bus):
        log = EventLog(bus)
        await supervisor.client()
        before = psutil.Process().num_fds()
        for count in range(2, 7):
            supervisor.restart()
            await log.wait_for_state("ready", count)
        assert psutil.Process().num_fds() <= before
        assert zombies() == []


async def test_children_that_cannot_be_started_leave_none_either(tmp_path: Path) -> None:
    async with supervised(str(tmp_path / "missing"), max_restarts=3) as (supervisor, bus):
        log = EventLog(bus)
        with pytest.raises(WorkerGaveUp):
            await supervisor.client()
        before = psutil.Process().num_fds()
        for count in range(2, 5):
            supervisor.restart()
            await log.wait_for_state("gave up", count)
        assert psutil.Process().num_fds() <= before
