"""What is in the folder of the prefix cache, for people."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mlx_serving.catalog.prefix_records import SUFFIX, UnusableRecord, files_of, models_of, read_header, version_folder


@dataclass(frozen=True, slots=True)
class ModelRecords:
    """The records of a model, which is known by its fingerprint only. `used_at` is Unix seconds, `damaged` counts files
    that will be deleted when a server finds them."""

    fingerprint: str
    records: int
    tokens: int
    size_bytes: int
    used_at: float
    damaged: int


def summaries(folder: Path) -> list[ModelRecords]:
    """What there is of each model; reads the beginning of every file. Raises OSError for a folder that cannot be
    read, but not for one that is not there."""
    return [_summary(folder, model) for model in models_of(folder)]


def clear(folder: Path) -> tuple[int, int]:
    """Delete all records; returns how many there were, and their size in bytes. A server that uses the folder goes on
    without them. Raises OSError."""
    count = size = 0
    for model in models_of(folder):
        for path in files_of(folder, model):
            with contextlib.suppress(FileNotFoundError):
                size += path.lstat().st_size
                path.unlink()
                count += path.suffix == SUFFIX
        with contextlib.suppress(OSError):  # a server has written something meanwhile
            (version_folder(folder) / model).rmdir()
    return count, size


def _summary(folder: Path, model: str) -> ModelRecords:
    records = tokens = size = damaged = 0
    used_at = 0.0
    for path in files_of(folder, model):
        if path.suffix != SUFFIX or path.name.startswith("."):
            continue
        try:
            record = read_header(path)
        except FileNotFoundError:
            continue
        except (OSError, UnusableRecord):
            damaged += 1
            continue
        records += 1
        tokens += record.count
        size += record.size
        used_at = max(used_at, record.used_at)
    return ModelRecords(model, records, tokens, size, used_at, damaged)
