"""Where the models that we converted live, and how they get there without ever being half there.

    <cache>/models/<stem>-<12 hexadecimal digits>/       a model directory that mlx-lm loads
    <cache>/models/.<same name>.lock                     held while it is made
    <cache>/models/.<same name>.<random>.partial/        being written; renamed when it is whole

The digits are a digest of the GGUF file's content, the precision, and the version of the converter's output, so a
changed file or a changed converter gets a directory of its own. What is there under its final name is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mlx_serving.catalog.conversion import CONVERTER_VERSION, MANIFEST, PARTIAL_SUFFIX, Manifest, Precision
from mlx_serving.catalog.identity import IdentityIndex
from mlx_serving.errors import InvalidConfig, ModelLoadError, ModelNotFound

CACHE_VARIABLE = "MLX_SERVING_CACHE"
_STEM_LENGTH = 80
_DIGITS = 12


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The directory for what can be made again: `$MLX_SERVING_CACHE`, else the platform's place for caches.

    That is `~/Library/Caches/mlx-serving` on macOS and `$XDG_CACHE_HOME/mlx-serving` or `~/.cache/mlx-serving`
    elsewhere. It need not exist. Raises `InvalidConfig` when there is no home directory to put it in.
    """
    try:
        own = environment.get(CACHE_VARIABLE)
        if own:
            return Path(own).expanduser().absolute()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "mlx-serving"
        shared = environment.get("XDG_CACHE_HOME", "")
        # The XDG specification: a relative path is invalid and to be ignored.
        return (Path(shared) if shared.startswith("/") else Path.home() / ".cache") / "mlx-serving"
    except RuntimeError:
        raise InvalidConfig(
            f"there is no home directory for the cache; set {CACHE_VARIABLE} to a directory",
            issues=[{"path": CACHE_VARIABLE, "message": "is needed, because this user has no home directory"}],
        ) from None


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted GGUF file. `source` is the name that the file had."""

    name: str
    path: Path
    source: str
    precision: str
    size_bytes: int


class ConversionStore:
    """The directory of converted models."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._identities = IdentityIndex(directory / "identities.json")

    def find(self, gguf: Path, precision: Precision) -> Path | None:
        """The model directory made from `gguf`, or None.

        Reads all of `gguf` once if its digest is not known, but not when nothing of its name was ever converted.
        """
        if not any(self.directory.glob(f"{_stem(gguf)}-*/config.json")):
            return None
        directory = self.directory / self._name(gguf, precision, None)
        return directory if (directory / "config.json").is_file() else None

    def place_for(self, gguf: Path, precision: Precision, on_bytes: Callable[[int, int], None] | None = None) -> Path:
        """Where the model made from `gguf` belongs, there or not. `on_bytes(done, total)` tells of the hashing."""
        return self.directory / self._name(gguf, precision, on_bytes)

    @contextlib.contextmanager
    def claim(self, place: Path, on_wait: Callable[[], None]) -> Generator[int]:
        """Be the only one to make `place`; other processes wait. `on_wait` is called if this one has to.

        Yields the descriptor of the lock: a child process that inherits it keeps the claim until it has ended, even if
        its parent is killed. Remains of conversions that did not end are removed.
        """
        place.parent.mkdir(parents=True, exist_ok=True)
        with (place.parent / f".{place.name}.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            for remains in place.parent.glob(f".{place.name}.*{PARTIAL_SUFFIX}"):
                shutil.rmtree(remains, ignore_errors=True)
            yield lock.fileno()

    def conversions(self) -> list[Conversion]:
        """All that is there, by name."""
        return sorted(
            (
                _conversion(config.parent)
                for config in self.directory.glob("*/config.json")
                if not config.parent.name.startswith(".")
            ),
            key=lambda conversion: conversion.name,
        )

    def remove(self, name: str) -> int:
        """Delete the converted model `name`; returns the bytes that this freed. Raises `ModelNotFound`."""
        found = next((conversion for conversion in self.conversions() if conversion.name == name), None)
        if found is None:
            raise ModelNotFound(f"no converted model is called {name!r} in {self.directory}", model=name)
        with self.claim(found.path, on_wait=lambda: None):
            # Renamed first, so that a removal that is interrupted leaves nothing that looks complete.
            doomed = found.path.with_name(f".{name}.removed{PARTIAL_SUFFIX}")
            found.path.rename(doomed)
            shutil.rmtree(doomed)
        return found.size_bytes

    def _name(self, gguf: Path, precision: Precision, on_bytes: Callable[[int, int], None] | None) -> str:
        try:
            content = self._identities.digest(gguf.resolve(), on_bytes)
        except OSError as error:
            raise ModelLoadError(f"{gguf} cannot be read: {error.strerror}", path=str(gguf)) from error
        identity = f"{CONVERTER_VERSION} {precision} {content}"
        return f"{_stem(gguf)}-{hashlib.sha256(identity.encode()).hexdigest()[:_DIGITS]}"


def size_of(directory: Path) -> int:
    """The bytes of all files below `directory`; files that are linked to count once."""
    inodes = {(status.st_dev, status.st_ino): status.st_size for status in _file_statuses(directory)}
    return sum(inodes.values())


def _file_statuses(directory: Path) -> Iterator[os.stat_result]:
    for path in directory.rglob("*"):
        if path.is_file():
            yield path.stat()


def _conversion(directory: Path) -> Conversion:
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        manifest = Manifest(source="unknown", precision="unknown")
    return Conversion(
        name=directory.name,
        path=directory,
        source=manifest.source,
        precision=manifest.precision,
        size_bytes=size_of(directory),
    )


def _stem(gguf: Path) -> str:
    """The file's name without its ending, made fit for a directory's name and a glob pattern."""
    plain = re.sub(r"[^\w.-]+", "-", gguf.stem, flags=re.ASCII).strip("-.")
    return plain[:_STEM_LENGTH] or "model"
