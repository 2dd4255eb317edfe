"""Keeping one worker alive: the shell around `core.worker_lifecycle`.

Every decision is the machine's; this module spawns, signals, watches, and tells what happened.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Protocol, assert_never

from mlx_serving.core import worker_lifecycle as lifecycle
from mlx_serving.core import worker_states
from mlx_serving.core.crash_finding import Finding
from mlx_serving.core.serving import WorkerHealth
from mlx_serving.core.worker_lifecycle import Cause, WorkerEvent, WorkerPolicy, WorkerState
from mlx_serving.core.worker_progress import WorkerProgress
from mlx_serving.engine.crash_history import CrashHistory
from mlx_serving.engine.memory_history import MemoryHistory
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.engine.worker_process import Exit, WorkerCommand, WorkerProcess
from mlx_serving.engine.worker_status import name_of, status_of
from mlx_serving.errors import EngineClosed, InvalidConfig, ProtocolError, WorkerDied
from mlx_serving.machine import cgroup
from mlx_serving.telemetry.events import EventBus, RuntimeStatusChanged
from mlx_serving.wire import methods
from mlx_serving.wire.notifications import Heartbeat, MemoryWanted, ModelProgress

_EXIT_CODE_NOT_STARTED = 127  # the shell's word for a command that is not there


class WorkerListener(Protocol):
    """Who must act when the worker is lost."""

    def worker_lost(self, error: WorkerDied) -> None: ...


class Supervisor:
    def __init__(
        self,
        command: WorkerCommand,
        policy: WorkerPolicy,
        events: EventBus,
        memory_kills: Callable[[], int | None] = cgroup.memory_kills,
        *,
        number: int = 0,
    ) -> None:
        """`memory_kills` counts whom the system killed for want of memory; None where it does not count. The
        worker is called `number` in events."""
        self._number = number
        self._memory = MemoryHistory(events, memory_kills)
        self._command = command
        self._policy = policy
        self._events = events
        self._state: WorkerState = lifecycle.Stopped()
        self._listeners: list[WorkerListener] = []
        self._on_loading: list[Callable[[ModelProgress], None]] = []
        self._on_memory_wanted: list[Callable[[MemoryWanted], None]] = []
        self._process: WorkerProcess | None = None
        self._client: WorkerClient | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._since = time.time()
        self._closed = False
        self._fault: str | None = None  # why the child that lives now is of no use
        self._restarts = 0
        self._spawned = 0
        self._crashes = CrashHistory(policy)
        self._progress = WorkerProgress()
        self._info: methods.RuntimeInfoResult | None = None

    # -- what others use

    def on_loading(self, listener: Callable[[ModelProgress], None]) -> None:
        """Tell of the progress of loads, by the names that the worker knows the models by."""
        self._on_loading.append(listener)

    def on_memory_wanted(self, listener: Callable[[MemoryWanted], None]) -> None:
        """Tell that somebody in the worker waits for memory."""
        self._on_memory_wanted.append(listener)

    def add_listener(self, listener: WorkerListener) -> None:
        self._listeners.append(listener)

    async def client(self) -> WorkerClient:
        """The connection to a worker that is ready; starts it and waits as needed.

        Raises `WorkerGaveUp` when restarts were given up, `EngineClosed` after `stop`.
        """
        while True:
            if self._closed:
                raise EngineClosed("The engine was shut down")
            match self._state:
                case lifecycle.Ready():
                    assert self._client is not None  # the handshake went over it
                    return self._client
                case lifecycle.Stopped() | lifecycle.GaveUp():
                    self._dispatch(lifecycle.StartRequested())
                    if isinstance(self._state, lifecycle.GaveUp):
                        raise self._crashes.gave_up(self._state, time.monotonic())
                case lifecycle.Starting() | lifecycle.Draining() | lifecycle.BackingOff():
                    await self._changed.wait()
                case _:
                    assert_never(self._state)

    def ensure_started(self) -> None:
        """Start the worker if it does not live and may be started; waits for nothing."""
        if not self._closed and isinstance(self._state, lifecycle.Stopped | lifecycle.GaveUp):
            self._dispatch(lifecycle.StartRequested())

    @property
    def has_given_up(self) -> bool:
        """Whether the worker died too often, and its restart must be asked for."""
        return isinstance(self._state, lifecycle.GaveUp)

    @property
    def ready_client(self) -> WorkerClient | None:
        """The connection to the worker if it is ready now. Starts nothing, waits for nothing."""
        return self._client if isinstance(self._state, lifecycle.Ready) else None

    async def stop(self) -> None:
        """End the worker: ask, then terminate, then kill. Returns when it is gone; nothing starts after that."""
        self._closed = True
        self._dispatch(lifecycle.StopRequested())
        while not isinstance(self._state, lifecycle.Stopped):
            await self._changed.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)  # what waited for the child has heard that it is gone

    def restart(self) -> None:
        """Replace the worker by a fresh one. What is in flight is lost as in a crash."""
        self._dispatch(lifecycle.RestartRequested())

    def reconfigure(self, command: WorkerCommand, policy: WorkerPolicy) -> None:
        """Start workers by this command from now on, and obey this policy at once. The worker that lives stays: see
        `restart`."""
        self._command, self._policy = command, policy
        self._crashes.policy = policy

    @property
    def info(self) -> methods.RuntimeInfoResult | None:
        """What the worker said of itself when it last became ready."""
        return self._info

    @property
    def progress(self) -> int:
        """A count that rises as long as workers get on with their work."""
        return self._progress.count

    def health(self) -> WorkerHealth:
        return WorkerHealth(
            state=name_of(self._state),
            pid=self._process.pid if self._process is not None else None,
            since=self._since,
            restarts=self._restarts,
            last_crash=self._crashes.last,
            kv_share=self._memory.kv_share,
        )

    # -- the machine

    def _dispatch(self, event: WorkerEvent) -> None:
        before = self._state
        self._state, effects = lifecycle.step(before, event, time.monotonic(), self._policy)
        if type(before) is not type(self._state):
            self._since = time.time()
            self._announce(before)
        for effect in effects:
            self._carry_out(effect)
        self._schedule_tick()
        if before is not self._state:
            self._changed.set()
            self._changed = asyncio.Event()

    def _carry_out(self, effect: worker_states.WorkerEffect) -> None:
        match effect:
            case lifecycle.Spawn():
                self._run(self._spawn(), "worker-spawn")
            case lifecycle.AskShutdown():
                if self._client is not None:
                    self._client.post(methods.SHUTDOWN, methods.NoParams())
            case lifecycle.Terminate():
                self._signal(signal.SIGTERM)
            case lifecycle.Kill():
                self._signal(signal.SIGKILL)
            case lifecycle.WorkerLost():
                self._lose(effect.cause)
            case _:
                assert_never(effect)

    def _schedule_tick(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        due = lifecycle.wake_at(self._state, self._policy)
        if due is not None:
            delay = max(0.0, due - time.monotonic())
            self._tick = asyncio.get_running_loop().call_later(delay, self._dispatch, lifecycle.Tick())

    def _announce(self, before: WorkerState) -> None:
        last = self._crashes.last
        reason = last.cause if last is not None and isinstance(self._state, lifecycle.GaveUp) else None
        pid = self._process.pid if self._process is not None else None
        self._events.publish(
            RuntimeStatusChanged(
                status=status_of(self._state),
                previous_status=status_of(before),
                state=name_of(self._state),
                reason=reason,
                pid=pid,
                worker=self._number,
            )
        )

    # -- one child

    async def _spawn(self) -> None:
        self._fault = None
        wanted = self._command
        command = wanted.with_history(restart_count=self._spawned, kv_share=self._memory.kv_share)
        self._restarts = self._spawned
        self._progress.worker_started()
        self._spawned += 1
        self._memory.spawned()
        try:
            process = await WorkerProcess.spawn(command)
        except (OSError, InvalidConfig) as error:
            self._fault = f"It cannot be started: {error}"
            self._exited(Exit(pid=0, exit_code=_EXIT_CODE_NOT_STARTED, signal=None, stderr_tail=""))
            return
        self._process = process
        self._run(self._watch(process), "worker-watch")
        try:
            client = await WorkerClient.connect(
                process.connection,
                command.settings.max_message_bytes,
                on_heartbeat=self._on_heartbeat,
                on_model_progress=self._on_model_progress,
                on_memory_wanted=self._memory_wanted,
                on_broken=self._on_broken,
            )
        except OSError as error:
            self._on_broken(ProtocolError(f"The connection to the worker failed: {error}"))
            return
        if self._process is not process:  # it ended while we connected
            client.abandon(WorkerDied("The worker has ended"))
            return
        self._client = client
        if not isinstance(self._state, lifecycle.Starting):
            # A stop came while the child was being made: it has not heard of it yet.
            process.send_signal(signal.SIGKILL)
            return
        try:
            info = await client.shake_hands(self._policy.heartbeat_interval_s)
        except WorkerDied:
            return  # the watch sees its end
        except ProtocolError as error:
            self._on_broken(error)
            return
        self._info = info
        self._dispatch(lifecycle.HandshakeDone())
        if wanted != self._command:  # a restart that was asked for meanwhile was not needed yet
            self.restart()

    async def _watch(self, process: WorkerProcess) -> None:
        self._exited(await process.wait())

    def _exited(self, end: Exit) -> None:
        cause = self._state.cause if isinstance(self._state, lifecycle.Draining) else Cause.EXITED
        finding: Finding | None = None
        if cause not in (Cause.STOP, Cause.RESTART):
            finding = self._crashes.record(end, cause, self._fault, killed_for_memory=self._memory.has_killed())
        self._memory.exited(finding)
        self._process = None
        served = self._client is not None and self._client.has_served
        origin = self._crashes.origin(cause)
        self._dispatch(lifecycle.ProcessExited(random.random(), served, origin))  # noqa: S311  jitter
        if self._client is not None:
            self._client.abandon(WorkerDied("The worker has ended"))
            self._client = None

    def _lose(self, cause: Cause) -> None:
        error = self._crashes.loss(cause)
        if self._client is not None and cause not in (Cause.STOP, Cause.RESTART):
            self._client.abandon(error)  # else it is still needed, to ask for the shutdown
        for listener in self._listeners:
            listener.worker_lost(error)

    def _on_heartbeat(self, beat: Heartbeat) -> None:
        self._progress.beat(beat.progress, busy=beat.busy)
        self._dispatch(lifecycle.Beat(beat.progress, beat.busy))

    def _on_model_progress(self, progress: ModelProgress) -> None:
        self._progress.model_progressed()
        for listener in self._on_loading:
            listener(progress)

    def _memory_wanted(self, wanted: MemoryWanted) -> None:
        for listener in self._on_memory_wanted:
            listener(wanted)

    def _on_broken(self, error: ProtocolError) -> None:
        """The child speaks nonsense: it is of no use, and its end is treated as a crash."""
        if self._fault is None:
            self._fault = error.message
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _run(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
