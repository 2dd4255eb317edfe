"""The prefix cache's folder, and what is done in it: looking at what is there, reading, writing and deleting.

Several processes may use one folder, see `catalog.prefix_records`. Each looks now and then at what the others do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from mlx_serving.catalog.prefix_records import (
    SUFFIX,
    Content,
    UnusableRecord,
    advise_record,
    clear_outdated,
    files_of,
    make_private,
    models_of,
    path_of,
    read_header,
    read_record,
    version_folder,
    write_record,
)
from mlx_serving.core.prefix.disk import DiskPolicy, Found, default_bytes
from mlx_serving.core.prefix.record import DiskRecord, Key
from mlx_serving.worker.prefix.ledger import PrefixLedger

_LEFTOVER_S = 3600.0
_WORTH_ADVICE_BYTES = 1 << 20  # less is read ahead by the system anyway


class Report(Protocol):
    def __call__(self, what: str, *, path: str, reason: str, count: int = 1) -> None: ...


class PrefixFolder:
    """Belongs to one thread, but for `path`. What it finds, writes and loses it tells the `ledger`. What raises OSError
    says so."""

    def __init__(self, path: Path, policy: DiskPolicy, ledger: PrefixLedger, report: Report) -> None:
        self.path = path
        self._policy = policy
        self._ledger = ledger
        self._report = report
        self._seen: dict[str, int] = {}  # model -> when its folder was last changed, in nanoseconds

    def open(self) -> None:
        """Make it, and clear what earlier versions left. Raises OSError."""
        make_private(version_folder(self.path))
        with contextlib.suppress(OSError):
            clear_outdated(self.path)

    def look(self) -> None:
        """See what others have done, and hold the limits."""
        for model in models_of(self.path):
            self.look_into(model)
        self._find_limit()
        self._unlink(self._ledger.surplus(time.time()))

    def glance(self) -> None:
        """See what others have done to the models that are asked for."""
        for model in tuple(self._seen):
            if _changed_at(self.path, model) != self._seen[model]:
                self.look_into(model)

    def _find_limit(self) -> None:
        if self._policy.max_bytes is None:
            self._ledger.limit(default_bytes(_free_bytes(self.path) + self._ledger.size))

    def look_into(self, model: str) -> None:
        """See what is there of a model."""
        if not self._ledger.knows_model(model):
            self._find_limit()
        self._seen[model] = _changed_at(self.path, model)
        names, records = set[str](), dict[Key, DiskRecord]()
        damaged: list[tuple[Path, str]] = []
        try:
            paths = files_of(self.path, model)
        except OSError as error:  # what is there may still be there
            self._report("unreadable", path=str(self.path), reason=str(error))
            self._ledger.compare(model, None, [])
            return
        for path in paths:
            names.add(path.name)
            self._examine(path, records, damaged)
        self._discard_damaged(damaged)
        self._unlink(self._ledger.compare(model, names, list(records.values())))

    def _examine(self, path: Path, records: dict[Key, DiskRecord], damaged: list[tuple[Path, str]]) -> None:
        if path.name.startswith("."):  # being written, or left over by a process that has died meanwhile
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _LEFTOVER_S:
                    path.unlink()
        elif path.suffix == SUFFIX and not self._ledger.knows(path.stem):
            try:
                records[path.stem] = read_header(path)
            except FileNotFoundError:
                pass
            except (OSError, UnusableRecord) as error:
                damaged.append((path, str(error)))

    def _discard_damaged(self, damaged: list[tuple[Path, str]]) -> None:
        if damaged:
            self._ledger.count(damaged=len(damaged))
            for path, _ in damaged:
                _unlink(path)
            path, reason = damaged[0]
            self._report("damaged", path=str(path), reason=reason, count=len(damaged))

    def write(self, record: DiskRecord, content: Content) -> None:
        """Make room for a record that is promised still, and write it. Raises OSError."""
        self._unlink(self._ledger.surplus(time.time()))
        if self._ledger.is_promised(record.key) and (size := self._written(record, content)):
            self._seen[record.model] = _changed_at(self.path, record.model)
            self._unlink(self._ledger.wrote(record.key, size))

    def _written(self, record: DiskRecord, content: Content) -> int:
        """How large the file is; 0 if there is none, because it would be of no use."""
        try:
            return write_record(self.path, record, content)
        except FileNotFoundError:  # the first one of its model, or somebody has deleted the folder
            make_private(version_folder(self.path))
            make_private(path_of(self.path, record).parent)
            self.look_into(record.model)
            return write_record(self.path, record, content) if self._ledger.knows(record.key) else 0

    def advise(self, soon: Sequence[Found]) -> None:
        """Have the disk bring what is to be read next, while what it has brought is checked."""
        for found in soon:
            if found.record.size >= _WORTH_ADVICE_BYTES:
                with contextlib.suppress(OSError):
                    advise_record(self.path, found.record)

    def read(self, found: Found) -> Content | None:
        """None if it is not what it should be: then it goes, and what goes on from it."""
        try:
            content = read_record(self.path, found.record)
        except (OSError, UnusableRecord) as error:
            self.lose(found.record, error)
            return None
        self._ledger.count(read=1, read_tokens=found.count)
        return content

    def lose(self, record: DiskRecord, error: OSError | UnusableRecord) -> None:
        """A record is not what it should be: it goes, and what goes on from it."""
        self._unlink(self._ledger.lose(record.key))
        if not isinstance(error, FileNotFoundError):  # else somebody else has deleted it, as may be
            self._ledger.count(damaged=1)
            self._report("damaged", path=str(path_of(self.path, record)), reason=str(error))

    def mark(self, records: Iterable[DiskRecord], now: float) -> None:
        """Note in the files that they were used: that is what the next start knows."""
        for record in records:
            with contextlib.suppress(OSError):
                os.utime(path_of(self.path, record), (now, now))

    def _unlink(self, records: Iterable[DiskRecord]) -> None:
        for record in records:
            _unlink(path_of(self.path, record))


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _changed_at(folder: Path, model: str) -> int:
    with contextlib.suppress(OSError):
        return (version_folder(folder) / model).stat().st_mtime_ns
    return 0


def _free_bytes(folder: Path) -> int:
    """What is free where the folder is, or would be."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0
