"""What the chaos benchmark does to a server and its worker."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))  # the worker that obeys is one of the tests'

from tests.engine.troubled_worker import Trouble

ADMIN_KEY = "chaos"
PHASES: Mapping[str, str] = {"s": "start", "l": "load", "p": "prefill", "d": "decode"}
NONSENSE = (b"nonsense\n", b'{"jsonrpc": "2.0", "id": 1e999}\n', bytes(range(128, 192)) * 100, b"\xc1\x00\x00\x00\x01?")
_AGAIN = 1 / 3
"""How often a lost worker is followed by the loss of the next one, before it serves."""
_ORDER = "-slpd"
_LOOK_EVERY_S = 0.0005
_PATIENCE_S = 20.0
_SLOW_PIECE_S = 0.02
_FULL_PIPE_S = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class Incident:
    kind: str
    phase: str
    in_recovery: bool
    at_s: float


@dataclass(slots=True)
class Incidents:
    """Brings about what is asked for. `server` is the process that the clients talk to."""

    client: httpx2.AsyncClient
    server: int
    trouble: Trouble
    chosen: random.Random
    happened: list[Incident] = field(default_factory=list[Incident])

    async def inflict(self, kind: str) -> None:
        """One incident, at a phase that chance decides; in one case of three another one before the worker serves
        again, if the first one was the worker's end."""
        await self._wait_for(self.chosen.choice("pd"), at_most_s=1.0)
        lost = await self._happen(kind, in_recovery=False)
        if lost and self.chosen.random() < _AGAIN:
            again = self.chosen.choice(("kill", kind))
            aimed_at = self.chosen.choice("slp")
            if doing := await self._wait_for(aimed_at, at_most_s=_PATIENCE_S, not_pid=lost):
                await self._happen(again, in_recovery=doing == aimed_at)

    async def _happen(self, kind: str, *, in_recovery: bool) -> int | None:
        """Returns the process id of the worker that was lost by it, once it is known to be."""
        pid, doing = self.trouble.news
        if not await _BY_KIND[kind](self, pid):
            return None
        phase = PHASES.get(doing, doing)
        self.happened.append(Incident(kind, phase, in_recovery or phase in ("start", "load"), time.perf_counter()))
        return None if kind == "full-pipe" else pid

    async def _wait_for(self, phase: str, *, at_most_s: float, not_pid: int | None = None) -> str | None:
        """What the worker does as soon as it is in that phase; or, where another one than `not_pid` is waited for, in a
        later one."""
        until = time.perf_counter() + at_most_s
        while time.perf_counter() < until:
            pid, doing = self.trouble.news
            later = not_pid is not None and _ORDER.index(doing) > _ORDER.index(phase)
            if pid != not_pid and (doing == phase or later):
                return doing
            await asyncio.sleep(_LOOK_EVERY_S)
        return None

    async def kill(self, pid: int) -> bool:
        return _send(pid, signal.SIGKILL)

    async def stop(self, pid: int) -> bool:
        return _send(pid, signal.SIGSTOP)

    async def restart(self, _pid: int) -> bool:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        (await self.client.post("/admin/workers/restart", headers=headers)).raise_for_status()
        return True

    async def truncate(self, _pid: int) -> bool:
        return await self._carried_out("truncate")

    async def garbage(self, _pid: int) -> bool:
        if self.chosen.random() < 0.3:
            return await self._carried_out("corrupt")
        return await self._carried_out("garbage", self.chosen.choice(NONSENSE))

    async def full_pipe(self, _pid: int) -> bool:
        """The server stands still while the worker goes on writing; then, in half of the cases, the worker does not
        read for a while."""
        os.kill(self.server, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.chosen.uniform(*_FULL_PIPE_S))
        finally:
            os.kill(self.server, signal.SIGCONT)
        if self.chosen.random() < 0.5:
            self.trouble.order("deaf", str(self.chosen.uniform(*_FULL_PIPE_S)))
        return True

    async def slow_disk(self, pid: int) -> bool:
        """The next load takes its time; in half of the cases its worker dies in the middle of it."""
        self.trouble.order("slow-disk", str(_SLOW_PIECE_S))
        if self.chosen.random() < 0.5:
            self.trouble.order("dying-load")
        killed = _send(pid, signal.SIGKILL)
        await self._wait_for("l", at_most_s=_PATIENCE_S, not_pid=pid)
        await self._wait_for("p", at_most_s=_PATIENCE_S, not_pid=pid)
        self.trouble.cancel("slow-disk")
        self.trouble.cancel("dying-load")
        return killed

    async def memory(self, pid: int) -> bool:
        """No address space is left to the worker, or MLX says that an allocation failed."""
        if self.chosen.random() < 0.5:
            return await self._carried_out("no-memory")
        try:
            resource.prlimit(pid, resource.RLIMIT_AS, (1, 1))
        except ProcessLookupError:
            return False
        if not await _within(lambda: not psutil.pid_exists(pid), _PATIENCE_S):
            return _send(pid, signal.SIGKILL)  # it had all that it needed
        return True

    async def _carried_out(self, order: str, content: bytes = b"") -> bool:
        self.trouble.order(order, content)
        if await _within(lambda: not self.trouble.is_ordered(order), _PATIENCE_S):
            return True
        self.trouble.cancel(order)
        return False


_BY_KIND: Mapping[str, Callable[[Incidents, int], Awaitable[bool]]] = {
    "kill": Incidents.kill,
    "stop": Incidents.stop,
    "restart": Incidents.restart,
    "truncated": Incidents.truncate,
    "garbage": Incidents.garbage,
    "full-pipe": Incidents.full_pipe,
    "slow-disk": Incidents.slow_disk,
    "memory": Incidents.memory,
}
KINDS: Sequence[str] = tuple(_BY_KIND)


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False  # it ended by itself meanwhile
    return True


async def _within(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > until:
            return False
        await asyncio.sleep(_LOOK_EVERY_S)
    return True
