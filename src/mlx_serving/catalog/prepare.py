"""From a reference to a model directory that mlx-lm can load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import assert_never

from mlx_serving.catalog.aliases import DIRECTORIES, find_directory, find_gguf
from mlx_serving.catalog.conversion import Precision, convert_in_child, preferred_precision
from mlx_serving.catalog.hub import Hub
from mlx_serving.catalog.progress import OnProgress, Progress
from mlx_serving.catalog.reference import Alias, GgufFile, HubRepository, ModelDirectory, Reference
from mlx_serving.catalog.store import ConversionStore, cache_directory


def open_store() -> ConversionStore:
    """The store of converted models in this user's cache."""
    return ConversionStore(cache_directory() / "models")


def locate(reference: Reference, *, precision: Precision | None = None) -> Path | None:
    """The directory of the model if it is there already. Uses no network and writes no model.

    `precision` is that of converted GGUF files; None is the one this machine is fastest with. Raises `ModelNotFound`
    for an alias whose package is not installed, `ModelLoadError` for a file that cannot be read.
    """
    match reference:
        case ModelDirectory(path):
            return path
        case GgufFile(path):
            return open_store().find(path, precision or preferred_precision())
        case Alias(name) if name in DIRECTORIES:
            return find_directory(name)
        case Alias(name):
            return open_store().find(find_gguf(name), precision or preferred_precision())
        case HubRepository():
            return Hub().find(reference)
        case _:
            assert_never(reference)


def prepare(
    reference: Reference, on_progress: OnProgress, *, python: str = sys.executable, precision: Precision | None = None
) -> Path:
    """The directory of the model, after downloading or converting it if it is not there yet. Blocks.

    A conversion runs in a child process of the interpreter `python`, once, however many processes ask for it. Raises
    what `locate` raises, `ModelLoadError` for what cannot be converted or downloaded, and what `on_progress` raises.
    """
    match reference:
        case ModelDirectory(path):
            return path
        case GgufFile(path):
            return _converted(path, precision or preferred_precision(), on_progress, python)
        case Alias(name) if name in DIRECTORIES:
            return find_directory(name)
        case Alias(name):
            return _converted(find_gguf(name), precision or preferred_precision(), on_progress, python)
        case HubRepository():
            hub = Hub()
            return hub.find(reference) or hub.download(reference, on_progress)
        case _:
            assert_never(reference)


def _converted(gguf: Path, precision: Precision, on_progress: OnProgress, python: str) -> Path:
    store = open_store()
    place = store.place_for(
        gguf, precision, lambda done, total: on_progress(Progress("reading", done, total, gguf.name))
    )
    if (place / "config.json").is_file():
        return place
    with store.claim(place, on_wait=lambda: on_progress(Progress("waiting", 0, 0, gguf.name))) as lock:
        if not (place / "config.json").is_file():  # nobody made it while this process waited
            convert_in_child(gguf, place, precision, on_progress, python=python, inherit=(lock,))
    return place
