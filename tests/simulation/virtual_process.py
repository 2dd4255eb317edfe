"""A child process that is none, and the pipe to it: bytes take time, and some are on their way when it dies."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mlx_serving.engine.worker_process import Exit

PIPE_DELAY_S = 0.001


class Program(Protocol):
    """What runs in a process."""

    def received(self, data: bytes) -> None: ...

    def end(self) -> None:
        """Nothing of it may happen any more."""
        ...


@dataclass(frozen=True, slots=True)
class Death:
    """How a process goes: `noticed_after_s` what it wrote before may still arrive, of which the last `torn` bytes were
    never written."""

    exit_code: int | None = None
    signal: signal.Signals | None = None
    noticed_after_s: float = 0.0
    torn: int = 0


class VirtualPipe:
    """The parent's end, as a transport. What is written arrives in order, `PIPE_DELAY_S` later."""

    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self._deliver = deliver
        self._protocol: asyncio.Protocol | None = None
        self._down: deque[bytes] = deque()
        self._up: deque[bytes] = deque()
        self._closed = False

    def connect(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)  # pyright: ignore[reportArgumentType]  as much of a transport as is used

    def write(self, data: bytes) -> None:
        assert not self._closed, "written after the end"
        self._down.append(data)
        asyncio.get_running_loop().call_later(PIPE_DELAY_S, self._arrive)

    def close(self) -> None:
        self._closed = True

    def is_closing(self) -> bool:
        return self._closed

    def say(self, data: bytes) -> None:
        """From the worker's end."""
        self._up.append(data)
        asyncio.get_running_loop().call_later(PIPE_DELAY_S, self._be_heard)

    def tear(self, size: int) -> None:
        """Of what was said last, the end was never written."""
        if self._up:
            self._up[-1] = self._up[-1][: max(0, len(self._up[-1]) - size)]

    def _arrive(self) -> None:
        self._deliver(self._down.popleft())

    def _be_heard(self) -> None:
        data = self._up.popleft()
        if not self._closed and self._protocol is not None and data:
            self._protocol.data_received(data)


class VirtualProcess:
    """Stands in for `engine.worker_process.WorkerProcess`. A stopped process hears nothing but SIGKILL."""

    def __init__(self, pid: int, start: Callable[[VirtualProcess], Program]) -> None:
        self.pid = pid
        self.connection = VirtualPipe(self._received)
        self.stopped = False
        self.death: Death | None = None
        self._noticed = asyncio.Event()
        self._program = start(self)

    @property
    def is_alive(self) -> bool:
        return self.death is None

    def die(self, death: Death) -> None:
        if self.death is not None:
            return
        self.death = death
        self._program.end()
        self.connection.tear(death.torn)
        asyncio.get_running_loop().call_later(death.noticed_after_s, self._noticed.set)

    def send_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGKILL or not self.stopped:
            self.die(Death(signal=number))

    async def wait(self) -> Exit:
        await self._noticed.wait()
        assert self.death is not None
        return Exit(self.pid, self.death.exit_code, self.death.signal, "")

    def _received(self, data: bytes) -> None:
        if self.is_alive:
            self._program.received(data)
