"""Answers on disk: a SQLite file that may be lost at any time, and never gets in the way.

One thread has the connection. A file that is damaged, or of another layout, is moved aside and begun anew. What cannot
be written is told once in the log, and is not there the next time.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from mlx_serving.core.response_index import Kept
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.engine")

SCHEMA_VERSION = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    body BLOB NOT NULL,
    tokens INTEGER NOT NULL,
    stored_at REAL NOT NULL,
    used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_use ON answers (used);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_BUSY_TIMEOUT_S = 1.0
_WAL_BYTES = 4 * 1024**2
# Another file would not help.
_NOT_THE_FILES_FAULT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)

R = TypeVar("R")


class DiskBodies:
    """`ResponseBodies` in a file, which only its owner may read: answers are as private as the conversations."""

    def __init__(self, path: Path, what: str = "response cache") -> None:
        """`what` it is called in the log."""
        self._path = path
        self._what = what
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-store")
        self._connection: sqlite3.Connection | None = None
        self._used = 0  # counts up with every use, from one run to the next
        self._failed = False
        self._closed = False

    async def open(self) -> list[tuple[str, Kept]]:
        return await self._do(self._open, [])

    async def read(self, key: str) -> bytes | None:
        return await self._do(lambda: self._read(key), None)

    async def write(self, key: str, kept: Kept, body: bytes, gone: list[str]) -> None:
        await self._do(lambda: self._write(key, kept, body, gone), None)

    async def drop(self, keys: list[str] | None) -> None:
        if keys != []:
            await self._do(lambda: self._drop(keys), None)

    async def close(self) -> None:
        await self._do(self._close, None)
        self._closed = True
        self._thread.shutdown(wait=False)

    # -- in the thread

    def _open(self) -> list[tuple[str, Kept]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _NOT_THE_FILES_FAULT:
                raise
            self._begin_anew(str(error))
        rows = self._db.execute(
            "SELECT key, tokens, length(body), stored_at, used FROM answers ORDER BY used"
        ).fetchall()
        self._used = rows[-1][4] if rows else 0
        return [(key, Kept(tokens, size, stored_at)) for key, tokens, size, stored_at, _ in rows]

    def _connect(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        self._connection = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"its layout is {version}, this version writes {SCHEMA_VERSION}")
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        self._db.executescript(_SCHEMA)
        self._db.execute("SELECT key, body, tokens, stored_at, used FROM answers LIMIT 1")

    def _begin_anew(self, reason: str) -> None:
        self._close()
        aside = self._path.with_name(f"{self._path.name}.unreadable-{time.time_ns()}")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        _log.warning(f"{self._what} begun anew", path=str(self._path), reason=reason, moved_to=str(aside))
        self._connect()

    def _read(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        self._db.execute("UPDATE answers SET used = ? WHERE key = ?", (self._next_use(), key))
        return bytes(row[0])

    def _write(self, key: str, kept: Kept, body: bytes, gone: Iterable[str]) -> None:
        self._db.execute("BEGIN")
        with self._db:
            self._db.executemany("DELETE FROM answers WHERE key = ?", [(each,) for each in gone])
            self._db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
                (key, body, kept.tokens, kept.stored_at, self._next_use()),
            )

    def _drop(self, keys: list[str] | None) -> None:
        if keys is None:
            self._db.execute("DELETE FROM answers")
            self._db.execute("VACUUM")
        else:
            self._db.execute("BEGIN")
            with self._db:
                self._db.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in keys])

    def _close(self) -> None:
        if self._connection is not None:
            with closing(self._connection):
                self._connection = None

    def _next_use(self) -> int:
        self._used += 1
        return self._used

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("the file could not be opened")
        return self._connection

    # -- outside of it

    async def _do(self, work: Callable[[], R], otherwise: R) -> R:
        if self._closed:
            return otherwise
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (OSError, sqlite3.Error) as error:
            if not self._failed:
                self._failed = True
                _log.warning(f"{self._what} cannot use its file", path=str(self._path), reason=str(error))
            return otherwise
