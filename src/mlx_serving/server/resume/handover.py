"""Requests that outlive the server: what one leaves unfinished, its next start finishes, and their clients fetch.

running ──the drain is over──▶ resume file ──next start──▶ being finished ──fetched──▶ forgotten
                                    ▲                            │ └──max_age_s──▶ forgotten
                                    └──────the drain is over─────┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_serving.core.generation import Backend, Delta
from mlx_serving.core.resumption import RequestLog, within_bounds
from mlx_serving.errors import EngineError, NotFound, Overloaded, RequestCrashedWorker
from mlx_serving.server.http.merged_streams import merged_streams
from mlx_serving.server.keys.hashing import KeyHash, hash_of
from mlx_serving.server.resume import file as resume_file
from mlx_serving.server.resume.file import Saved
from mlx_serving.server.resume.journal import Journal
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")
_MAX_REQUESTS = 1000
_BUSY_S = 60.0


def resume_path(completion_id: str) -> str:
    """Where the rest of an answer is to be had after the next start."""
    return f"/v1/resumed/{completion_id}"


@dataclass(slots=True)
class Reader:
    """How many deltas of each sequence somebody has who reads the stream, and how many numbered events."""

    cursors: list[int]
    events: int


class Resumed:
    """A request of the last server, as far as it got in this one. `error` is what keeps it from its end."""

    def __init__(self, log: RequestLog, key: KeyHash | None) -> None:
        self.log = log
        self.key = key
        self.error: EngineError | None = None
        self.readers: list[Reader] = []
        self._changed = asyncio.Event()

    def add(self, number: int, delta: Delta) -> None:
        self.log.sequences[number].deltas.append(delta)
        self._tell()

    def fail(self, error: EngineError) -> None:
        self.error = error
        self._tell()

    async def until_changed(self) -> None:
        """Wait for more. Raises what keeps it from its end."""
        if self.error is not None:
            raise self.error
        await self._changed.wait()

    @contextmanager
    def reading(self) -> Generator[Reader]:
        """Read the stream from where its client was cut off. The reader counts in what this gives."""
        reader = Reader([sequence.sent for sequence in self.log.sequences], self.log.events)
        self.readers.append(reader)
        try:
            yield reader
        finally:
            self.readers = [each for each in self.readers if each is not reader]

    def cut_off_readers(self) -> None:
        """The last one to read will go on where it is now."""
        for reader in self.readers[-1:]:
            self.log.opened, self.log.events = True, reader.events
            for sequence, sent in zip(self.log.sequences, reader.cursors, strict=True):
                sequence.sent = sent

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Handover:
    """`width` requests of the last server are finished at a time."""

    def __init__(self, file: Path, max_age_s: float, engine: Backend, *, width: int) -> None:
        """Takes the file over. Raises `InvalidConfig` when it cannot be the resume file."""
        resume_file.check(file)
        self.journal = Journal()
        self._file = file
        self._max_age_s = max_age_s
        self._engine = engine
        self._timeout_s: float | None = None
        self._places = asyncio.Semaphore(width)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._left: frozenset[str] | None = None
        self._unfinished = False
        saved = resume_file.take(file)
        times = [(log.cut_at or 0.0, (log, key)) for log, key in saved]
        kept, dropped = within_bounds(times, time.time(), max_age_s=max_age_s, limit=_MAX_REQUESTS)
        self._resumed = {log.completion_id: Resumed(log, key) for log, key in kept}
        if saved:
            _log.info("requests resumed", file=str(file), requests=len(kept), too_old=dropped)

    def start(self, timeout_s: float | None) -> None:
        """Begin to finish what the last server has left, each request within `timeout_s`."""
        self._timeout_s = timeout_s
        loop = asyncio.get_running_loop()
        for completion_id, resumed in self._resumed.items():
            self._begin(resumed)
            age_s = time.time() - (resumed.log.cut_at or 0.0)
            self._expiries[completion_id] = loop.call_later(self._max_age_s - age_s, self._expire, completion_id)

    def find(self, completion_id: str) -> Resumed:
        """What its client asks for. If it failed it is tried again, unless it is known to kill workers. Raises
        `NotFound`."""
        resumed = self._resumed.get(completion_id)
        if resumed is None:
            raise unknown(completion_id)
        if resumed.error is not None and not isinstance(resumed.error, RequestCrashedWorker):
            resumed.error = None
            self._begin(resumed)
        return resumed

    def forget(self, completion_id: str) -> None:
        """Its client has all of it, or will not come for it."""
        self._resumed.pop(completion_id, None)
        for timer in (self._expiries.pop(completion_id, None), self._tasks.pop(completion_id, None)):
            if timer is not None:
                timer.cancel()

    def leave(self) -> frozenset[str]:
        """Write what is not finished, or was not fetched, for the next start: as it is at this moment, once.

        Returns the ids of what is there then. What cannot be written is logged.
        """
        if self._left is None:
            self._left = self._write()
        return self._left

    @property
    def left_unfinished(self) -> bool:
        """Whether some of what was left needs more work."""
        return self._unfinished

    def close(self) -> None:
        """End the work on what was resumed."""
        for completion_id in tuple(self._resumed):
            self.forget(completion_id)

    def _write(self) -> frozenset[str]:
        now = time.time()
        requests: list[Saved] = []
        hashes: dict[str, KeyHash] = {}
        for noted in self.journal.running():
            noted.log.cut_at = now
            if noted.key is not None and noted.key not in hashes:
                hashes[noted.key] = hash_of(noted.key)
            requests.append((noted.log, None if noted.key is None else hashes[noted.key]))
        for resumed in self._resumed.values():
            if isinstance(resumed.error, RequestCrashedWorker):
                continue
            resumed.cut_off_readers()
            requests.append((resumed.log, resumed.key))
        times = [(log.cut_at or 0.0, (log, key)) for log, key in requests]
        kept, dropped = within_bounds(times, now, max_age_s=self._max_age_s, limit=_MAX_REQUESTS)
        if not kept:
            return frozenset()
        try:
            resume_file.leave(self._file, kept)
        except (OSError, TypeError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else type(error).__name__  # which quotes no prompt
            _log.error("resume file not written", file=str(self._file), problem=problem, lost=len(kept))
            return frozenset()
        unfinished = sum(not log.ended for log, _ in kept)
        self._unfinished = unfinished > 0
        _log.info("requests left", file=str(self._file), requests=len(kept), unfinished=unfinished, left_out=dropped)
        return frozenset(log.completion_id for log, _ in kept)

    def _begin(self, resumed: Resumed) -> None:
        completion_id = resumed.log.completion_id
        self._tasks[completion_id] = asyncio.create_task(self._finish(resumed), name=f"resume {completion_id}")

    async def _finish(self, resumed: Resumed) -> None:
        while not resumed.log.ended:
            numbered = [(number, each) for number, each in enumerate(resumed.log.sequences) if not each.ended]
            requests = [replace(each.next_request(), timeout_s=self._timeout_s) for _, each in numbered]
            try:
                async with self._places, merged_streams(self._engine, requests) as deltas:
                    async for place, delta in deltas:
                        resumed.add(numbered[place][0], delta)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after)
            except EngineError as error:
                completion_id = resumed.log.completion_id
                _log.warning("request not resumed", completion_id=completion_id, code=error.code, message=error.message)
                resumed.fail(error)
                return

    def _expire(self, completion_id: str) -> None:
        resumed = self._resumed.get(completion_id)
        if resumed is not None and resumed.readers:
            loop = asyncio.get_running_loop()
            self._expiries[completion_id] = loop.call_later(_BUSY_S, self._expire, completion_id)
        else:
            self.forget(completion_id)


def unknown(completion_id: str) -> NotFound:
    """Also for who may not have it: nobody learns which ids there are."""
    return NotFound(
        f"There is no unfinished answer {completion_id!r} here: it was not left by the last server, was fetched, or is "
        "too old",
        id=completion_id,
    )
