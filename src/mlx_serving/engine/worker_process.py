"""One child process: how it is started, what it writes on stderr, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import msgspec

from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas
from mlx_serving.telemetry.logger import get_logger
from mlx_serving.wire import settings as wire_settings
from mlx_serving.wire.settings import WorkerSettings

_log = get_logger("mlx_serving.worker")
_TAIL_LINES = 50
_LINE_LIMIT = 4096
_LAST_WORDS_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """`python` runs the worker (None: the interpreter that runs us); `blas` as in `machine.blas.find`; `environment` is
    added to ours."""

    settings: WorkerSettings
    python: str | None = None
    blas: str = "auto"
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def with_history(self, *, restart_count: int, kv_share: float) -> WorkerCommand:
        """For a worker that follows others: see `WorkerSettings`."""
        settings = msgspec.structs.replace(self.settings, restart_count=restart_count, kv_share=kv_share)
        return replace(self, settings=settings)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended: exactly one of `exit_code` and `signal` is set."""

    pid: int
    exit_code: int | None
    signal: int | None
    stderr_tail: str

    @property
    def signal_name(self) -> str | None:
        if self.signal is None:
            return None
        try:
            return signal.Signals(self.signal).name
        except ValueError:  # real-time signals have no names of their own
            return f"signal {self.signal}"


class WorkerProcess:
    """A running child. Its stderr is read always, logged line by line, and its last lines are kept."""

    def __init__(self, transport: asyncio.SubprocessTransport, output: _Output, connection: socket.socket) -> None:
        self._transport = transport
        self._output = output
        self.connection = connection

    @property
    def pid(self) -> int:
        return self._output.pid

    @classmethod
    async def spawn(cls, command: WorkerCommand) -> WorkerProcess:
        """Start a child that speaks the protocol on `connection`.

        Raises OSError when it cannot be started, `InvalidConfig` for a BLAS library that is not there.
        """
        # In a thread, because looking for libraries runs programs and reads disks.
        environment = await asyncio.to_thread(_environment, command.blas, command.environment)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            transport, output = await asyncio.get_running_loop().subprocess_exec(
                _Output,
                command.python or sys.executable,
                "-m",
                "mlx_serving.worker",
                "--fd",
                str(theirs.fileno()),
                "--settings",
                wire_settings.encode(command.settings),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal is for us: the child ends when we drained
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(transport, output, ours)

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing when the child has ended."""
        if not self._output.exited.is_set():
            # Not through the transport: its Popen looks for the exit status itself, and may take it from the watcher.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> Exit:
        """Wait for the child's end, and for the last line that it wrote."""
        await self._output.exited.wait()
        # A grandchild could hold stderr open for ever; what is there after a moment is what the report gets.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._output.closed.wait()
        self._output.finish()
        self._transport.close()
        status = self._transport.get_returncode()
        assert status is not None  # it has exited
        return Exit(
            pid=self.pid,
            exit_code=status if status >= 0 else None,
            signal=-status if status < 0 else None,
            stderr_tail="\n".join(self._output.tail),
        )


class _Output(asyncio.SubprocessProtocol):
    """What the transport tells of a child: its stderr, cut into lines, and its end."""

    def __init__(self) -> None:
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.pid = 0
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        pid = cast("asyncio.SubprocessTransport", transport).get_pid()
        assert pid is not None  # it was started
        self.pid = pid

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._keep(line)
        if len(self._pending) > _LINE_LIMIT:
            self.finish()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.closed.set()

    def process_exited(self) -> None:
        self.exited.set()

    def finish(self) -> None:
        """Take what has no newline yet as a line."""
        self._keep(self._pending)
        self._pending = b""

    def _keep(self, line: bytes) -> None:
        text = line[:_LINE_LIMIT].decode(errors="replace").rstrip()
        if text:
            self.tail.append(text)
            _log.debug("stderr", pid=self.pid, line=text)


def _environment(choice: str, more: Mapping[str, str]) -> dict[str, str]:
    environment = blas.environment(blas.find(choice), os.environ, cache_directory() / "blas")
    return {**environment, blas.ENVIRONMENT_VARIABLE: choice, **more}
