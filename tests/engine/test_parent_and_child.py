"""What ties the worker to the process that started it: programs that die, and Ctrl-C at their terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import psutil

PROGRAM = """
import asyncio, signal
from mlx_serving.core.worker_lifecycle import WorkerPolicy
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_process import WorkerCommand
from mlx_serving.telemetry.events import EventBus
from mlx_serving.wire import methods
from mlx_serving.wire.settings import WorkerSettings

async def main():
    supervisor = Supervisor(WorkerCommand(WorkerSettings()), WorkerPolicy(), EventBus())
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    client = await supervisor.client()
    print(supervisor.health().pid, flush=True)
    await interrupted.wait()
    state = await client.call(methods.RUNTIME_STATE, methods.NoParams())
    print("answered", state.restart_count, flush=True)
    await supervisor.stop()
    print(supervisor.health().state, supervisor.health().last_crash, flush=True)

asyncio.run(main())
"""


@contextmanager
def program() -> Generator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A program with a worker that is ready, in a process group of its own as at a terminal; and that worker."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, process_group=0
    ) as parent:
        try:
            assert parent.stdout is not None
            yield parent, psutil.Process(int(parent.stdout.readline()))
        finally:
            parent.kill()


def test_a_worker_whose_parent_was_killed_ends() -> None:
    with program() as (parent, worker):
        parent.kill()
        parent.wait()
        worker.wait(30)
        assert not worker.is_running()


def test_ctrl_c_reaches_the_parent_and_not_the_worker() -> None:
    with program() as (parent, worker):
        os.killpg(parent.pid, signal.SIGINT)
        output, _ = parent.communicate(timeout=60)
        assert output.splitlines() == ["answered 0", "stopped None"]
        assert parent.returncode == 0
        assert not worker.is_running()
