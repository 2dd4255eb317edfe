"""What a file contains, as a digest that is computed once.

A GGUF file is known by the SHA-256 of all its content. Less would be quicker, but two fine-tunes of one model can have
the same size, header and last tensors, and serving the wrong one would go unnoticed. Hashing runs at about a gigabyte a
second, so the result is kept beside the models, under the file's path, for as long as its size, time and inode stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

_PIECE_BYTES = 8 << 20

_Stamp: TypeAlias = tuple[int, int, int]


class IdentityIndex:
    """Digests of files, remembered in one JSON file. Losing that file costs time only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, file: Path) -> str | None:
        """The digest of `file` if it was computed before and the file has not changed since."""
        entry = self._read().get(str(file))
        return entry[1] if entry is not None and entry[0] == _stamp(file) else None

    def digest(self, file: Path, on_bytes: Callable[[int, int], None] | None = None) -> str:
        """The SHA-256 of `file` in hexadecimal. `on_bytes(done, total)` is called while it is computed. Where it cannot
        be written down it is computed again the next time."""
        known = self.known(file)
        if known is not None:
            return known
        stamp = _stamp(file)
        digest = _sha256(file, stamp[0], on_bytes)
        with contextlib.suppress(OSError):
            self._remember(file, stamp, digest)
        return digest

    def _remember(self, file: Path, stamp: _Stamp, digest: str) -> None:
        entries = {path: entry for path, entry in self._read().items() if Path(path).exists()}
        entries[str(file)] = (stamp, digest)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may write at once; the file of one replaces that of the other whole.
        fresh = tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=".identities.", delete=False)  # noqa: SIM115
        try:
            with fresh:
                fresh.write(msgspec.json.encode(entries))
            Path(fresh.name).replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                Path(fresh.name).unlink()
            raise

    def _read(self) -> dict[str, tuple[_Stamp, str]]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, tuple[_Stamp, str]])
        except (OSError, msgspec.MsgspecError):
            return {}


def _stamp(file: Path) -> _Stamp:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _sha256(file: Path, size: int, on_bytes: Callable[[int, int], None] | None) -> str:
    digest = hashlib.sha256()
    done = 0
    with file.open("rb") as source:
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
            done += len(piece)
            if on_bytes is not None:
                on_bytes(done, size)
    return digest.hexdigest()
