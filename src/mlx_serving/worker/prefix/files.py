"""A thread for the prefix cache's folder, that reads, deletes and writes, in this order of urgency.

    reading, for somebody who waits ▸ looking at what is there ▸ deleting what is too much ▸ writing ▸ reading, for
    somebody who may come

What is on disk is known in memory (`core.prefix.disk`), so whoever asks does not wait for it. What is to be written
waits as a promise; its bytes are made only when they are next, on the thread that owns MLX (`pump`). Whatever goes
wrong here costs a computation and a word to `report`: the cache may lose anything at any time, but not tell a lie.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mlx_serving.catalog.prefix_records import Content, UnusableRecord
from mlx_serving.core.prefix.disk import DiskPolicy, Found, KnownSequence
from mlx_serving.core.prefix.record import DiskRecord, Key, RecordKind
from mlx_serving.core.prefix.traffic import ReadingRate
from mlx_serving.core.runtime_telemetry import PrefixDiskTelemetry
from mlx_serving.worker.prefix.folder import PrefixFolder, Report
from mlx_serving.worker.prefix.ledger import PrefixLedger, Source

_STAGED_BYTES = 64 << 20  # bytes that wait for the thread; what comes after them waits without any
_PART_BYTES = 4 << 20  # what is read is handed over in parts that are a little larger
_HANDED_OVER = 2  # parts that were read and not used yet
_ADVISED = 2  # records that the disk is told of before they are read
_GLANCE_S = 1.0  # how soon it shows that others have written or deleted something
_LOOK_S = 60.0
_REST_S = 30.0  # nothing is written for so long after the disk refused


Part: TypeAlias = Sequence[tuple[Found, Content]]


@dataclass(slots=True)
class Reading:
    """Records read for one sequence. `on_part` gets those that end behind the first `have` tokens, some at a time, in
    their order, and `on_end` says that no more come; both are called on the thread that owns MLX. Who does not want it
    any more sets `abandoned`. With `can_wait`, everything else is done first, also in the middle of it."""

    model: str
    root: Key
    tokens: bytes
    kind: RecordKind
    have: int
    on_part: Callable[[Part], None]
    on_end: Callable[[], None]
    can_wait: bool = False
    abandoned: bool = False


class PrefixFiles:
    """`deliver` runs a function on the thread that owns MLX, `wake` has that one call `pump`. Both can be called from
    any thread, as well as `report`."""

    def __init__(
        self,
        folder: Path,
        policy: DiskPolicy,
        deliver: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
        report: Report,
    ) -> None:
        self._deliver = deliver
        self._wake = wake
        self._report = report
        self._changed = threading.Condition()
        self._ledger = PrefixLedger(policy.max_bytes or 0, policy.max_age_s)
        self._folder = PrefixFolder(folder, policy, self._ledger, report)
        # What follows belongs to whoever holds the condition.
        self._staged: deque[tuple[DiskRecord, Content]] = deque()
        self._staged_bytes = 0
        self._readings: deque[Reading] = deque()
        self._patient: deque[Reading] = deque()
        self._chores: deque[Callable[[], None]] = deque()
        self._rate = ReadingRate()
        self._rests_until = 0.0
        self._next_look = self._next_glance = float("inf")  # until there is a model
        self._is_busy = self._is_closed = False
        self._handed_over = threading.Semaphore(_HANDED_OVER)
        threading.Thread(target=self._run, name="prefix-files", daemon=True).start()

    # -- on the thread that owns MLX

    def do(self, chore: Callable[[], None]) -> None:
        """Have the thread do something, before it deletes or writes."""
        with self._changed:
            self._chores.append(chore)
            self._changed.notify_all()

    def add_model(self, model: str) -> None:
        """Records of this model may be asked for from now on. The first one has the thread look around."""
        with self._changed:
            if self._next_look == float("inf"):
                self._next_look = self._next_glance = 0.0
                self._chores.append(self._folder.open)
            if not self._ledger.knows_model(model):
                self._chores.append(lambda: self._folder.look_into(model))
            self._changed.notify_all()

    def find(self, model: str, root: Key, tokens: bytes, kind: RecordKind) -> list[Found] | None:
        """What could be read of a sequence; None while it is not known what is there."""
        return self._ledger.find(model, root, tokens, kind)

    def reading_s(self, size: int) -> float:
        """How long it should take to read so many bytes."""
        with self._changed:
            return self._rate.seconds_for(size)

    def read(self, reading: Reading) -> None:
        with self._changed:
            (self._patient if reading.can_wait else self._readings).append(reading)
            self._changed.notify_all()

    def latest(self, root: Key, max_bytes: float) -> list[KnownSequence]:
        """The sequences behind `root` that were used last, the latest one first, as far as they take no more than
        `max_bytes`."""
        return self._ledger.latest(root, max_bytes)

    def keep(
        self,
        model: str,
        root: Key,
        tokens: bytes,
        kind: RecordKind,
        token_bytes: float,
        source: Source,
        *,
        most: int,
        tail: bool,
    ) -> None:
        """Write what is not on disk yet of a sequence that begins with these tokens, later, as long as `source` can
        make it. A token takes about `token_bytes`, a record of blocks has `most` tokens. With `tail`, also what does
        not fill one."""
        if time.monotonic() < self._rests_until:
            return
        now = time.time()
        last = self._ledger.promise(model, root, tokens, kind, token_bytes, source, now, most=most, tail=tail)
        if last is not None:
            self._used(last)

    @property
    def wants_pump(self) -> bool:
        """Whether there is something for `pump` to do."""
        with self._changed:
            return self._staged_bytes < _STAGED_BYTES and self._ledger.has_pending

    def pump(self, budget: float) -> None:
        """Make the bytes of what is to be written next, `budget` of them or a few more."""
        while budget > 0 and self.wants_pump:
            taken = self._ledger.take()
            if taken is None:
                return
            record, source = taken
            content = self._made(record, source)
            if content is None:
                self._ledger.give_up(record.key)
                continue
            with self._changed:
                self._staged.append((record, content))
                self._staged_bytes += content.size
                self._changed.notify_all()
            budget -= content.size

    def _made(self, record: DiskRecord, source: Source) -> Content | None:
        try:
            return source(record)
        except Exception as error:  # noqa: BLE001  whoever decodes meanwhile must not hear of it
            self._report("failed", path=str(self._folder.path), reason=f"{type(error).__name__}: {error}")
            return None

    def flush(self, patience_s: float) -> None:
        """Write what waits, if it can be done in so many seconds."""
        until = time.monotonic() + patience_s
        while (left_s := until - time.monotonic()) > 0:
            self.pump(float("inf"))
            with self._changed:
                if not (self._ledger.has_pending or self._staged or self._is_busy or self._chores):
                    return
                self._changed.wait(left_s)

    def close(self) -> None:
        """End the thread when it has done what it is at."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def telemetry(self) -> PrefixDiskTelemetry:
        return self._ledger.telemetry(str(self._folder.path))

    def _used(self, key: Key) -> None:
        """Have the files of a record and those before it marked with this use."""
        now = time.time()
        records = self._ledger.use(key, now)
        if records:
            self.do(lambda: self._folder.mark(records, now))

    # -- with the condition held

    def _next(self) -> Callable[[], None] | None:
        if self._readings:
            reading = self._readings.popleft()
            return lambda: self._read(reading)
        if self._chores:
            return self._chores.popleft()
        now = time.monotonic()
        if now >= self._next_look:
            return self._look
        if now >= self._next_glance:
            return self.glance
        if self._staged:
            record, content = self._staged.popleft()
            return lambda: self._write(record, content)
        if self._patient:
            patient = self._patient.popleft()
            return lambda: self._read_patiently(patient)
        return None

    # -- in the thread

    def _run(self) -> None:
        while not self._is_closed:
            with self._changed:
                while (job := self._next()) is None and not self._is_closed:
                    self._is_busy = False
                    self._changed.notify_all()
                    due_s = min(self._next_look, self._next_glance) - time.monotonic()
                    self._changed.wait(min(max(0.0, due_s), threading.TIMEOUT_MAX))
                self._is_busy = True
            try:
                if job is not None:
                    job()
            except OSError as error:
                self._rest(error)
            except Exception as error:  # noqa: BLE001  the thread must live on, whatever a file system comes up with
                self._report("failed", path=str(self._folder.path), reason=f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        with self._changed:
            self._next_look = time.monotonic() + _LOOK_S
        self._folder.look()

    def glance(self) -> None:
        """See what others have done to the models that are asked for."""
        with self._changed:
            self._next_glance = time.monotonic() + _GLANCE_S
        self._folder.glance()

    def _write(self, record: DiskRecord, content: Content) -> None:
        try:
            self._folder.write(record, content)
        except OSError as error:
            self._ledger.give_up(record.key)
            self._rest(error)
        finally:
            with self._changed:
                self._staged_bytes -= content.size
                self._changed.notify_all()
            if self._ledger.has_pending:
                self._wake()

    def _rest(self, error: OSError) -> None:
        """The disk does not take any more: leave it alone for a while."""
        with self._changed:
            was_resting = time.monotonic() < self._rests_until
            self._rests_until = time.monotonic() + _REST_S
            self._staged_bytes -= sum(content.size for _, content in self._staged)
            self._staged.clear()
        self._ledger.give_up_all()
        if not was_resting:
            self._report("refused", path=str(self._folder.path), reason=str(error))

    def _read_patiently(self, reading: Reading) -> None:
        with self._changed:
            self._is_busy = False  # a worker that ends does not wait for this
            self._changed.notify_all()
        self._read(reading)

    def _read(self, reading: Reading) -> None:
        if not self._ledger.knows_model(reading.model):
            self._folder.look_into(reading.model)
        path = self._ledger.find(reading.model, reading.root, reading.tokens, reading.kind) or []
        wanted = [found for found in path if found.record.start + found.count > reading.have]
        part: list[tuple[Found, Content]] = []
        for number, found in enumerate(wanted):
            self._folder.advise(wanted[1 if number == 0 else number + _ADVISED : number + _ADVISED + 1])
            if reading.can_wait and self._is_wanted_elsewhere:
                reading.have = found.record.start
                self._hand_over(reading, part)
                self.read(reading)
                return
            if reading.abandoned or self._is_closed or (content := self._content(found)) is None:
                break
            part.append((found, content))
            if sum(content.size for _, content in part) >= _PART_BYTES:
                self._hand_over(reading, part)
                part = []
        self._hand_over(reading, part)
        self._deliver(reading.on_end)
        if path and not reading.can_wait:  # else nobody has asked for it
            self._used(path[-1].record.key)

    @property
    def _is_wanted_elsewhere(self) -> bool:
        with self._changed:
            return bool(self._readings or self._chores or self._staged)

    def _hand_over(self, reading: Reading, part: Part) -> None:
        """As soon as not too much waits to be used, unless it is not wanted any more."""
        while part and not self._handed_over.acquire(timeout=1):
            if reading.abandoned or self._is_closed:
                return

        def hand_over() -> None:
            self._handed_over.release()
            if not reading.abandoned:
                reading.on_part(part)

        if part:
            self._deliver(hand_over)

    def _content(self, found: Found) -> Content | None:
        began = time.monotonic()
        content = self._folder.read(found)
        if content is not None:
            with self._changed:
                self._rate.learn(found.record.size, time.monotonic() - began)
        return content

    def forget(self, record: DiskRecord, reason: str) -> None:
        """A record cannot be used, as it turned out."""
        self.do(lambda: self._folder.lose(record, UnusableRecord(reason)))
