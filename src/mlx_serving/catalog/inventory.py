"""All the models on this machine, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, assert_never, get_args

from mlx_serving.catalog.aliases import ALIASES, DIRECTORIES, find_directory, find_gguf
from mlx_serving.catalog.conversion import Precision, preferred_precision
from mlx_serving.catalog.hub import Hub
from mlx_serving.catalog.prepare import open_store
from mlx_serving.catalog.reference import Alias, GgufFile, HubRepository, ModelDirectory, parse_reference
from mlx_serving.catalog.store import ConversionStore, size_of
from mlx_serving.errors import InvalidRequest, ModelNotFound

Kind: TypeAlias = Literal["alias", "converted", "hub", "incomplete"]


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model that can be named. `path` is None, and the size 0, for an alias that is not converted yet. What an
    interrupted download of the hub left is `incomplete`."""

    name: str
    kind: Kind
    path: Path | None
    size_bytes: int
    summary: str


def list_models() -> list[CatalogEntry]:
    """Aliases, then converted GGUF files that belong to none of them, then what the hub's cache holds."""
    store = open_store()
    conversions = {conversion.path: conversion for conversion in store.conversions()}
    aliases: list[CatalogEntry] = []
    for name in sorted(ALIASES):
        place = _converted_alias(store, name)
        made = conversions.pop(place, None) if place else None
        aliases.append(
            CatalogEntry(
                name, "alias", made.path if made else None, made.size_bytes if made else 0, ALIASES[name].summary
            )
        )
    for name in sorted(DIRECTORIES):
        place = _packaged_directory(name)
        aliases.append(
            CatalogEntry(name, "alias", place, 0 if place is None else size_of(place), DIRECTORIES[name].summary)
        )
    converted = [
        CatalogEntry(entry.name, "converted", entry.path, entry.size_bytes, f"{entry.precision} from {entry.source}")
        for entry in conversions.values()
    ]
    hub = Hub()
    cached = [
        CatalogEntry(entry.repo_id, "hub", entry.path, entry.size_bytes, ", ".join(entry.refs) or entry.commit[:12])
        for entry in hub.cached()
    ]
    parts = [
        CatalogEntry(repo_id, "incomplete", folder, size, "interrupted: pull it to complete it")
        for repo_id, folder, size in hub.incomplete()
    ]
    return [*aliases, *converted, *cached, *parts]


def remove_model(name: str) -> int:
    """Delete the files of a model that this program made or downloaded; returns the bytes that this freed.

    `name` is a name of `list_models`, or the path of a GGUF file, whose conversions go while the file itself stays.
    Raises `ModelNotFound` when there is nothing to delete, `InvalidRequest` for a model that lies elsewhere.
    """
    store = open_store()
    if any(conversion.name == name for conversion in store.conversions()):
        return store.remove(name)
    reference = parse_reference(name)
    match reference:
        case Alias(alias) if alias in DIRECTORIES:
            command = f"pip uninstall {DIRECTORIES[alias].distribution}"
            raise InvalidRequest(f"{alias} is part of a package; remove it with {command}", field="model", given=name)
        case Alias():
            return _remove_conversions(store, find_gguf(reference.name), name)
        case GgufFile(path):
            return _remove_conversions(store, path, name)
        case ModelDirectory(path):
            if path.parent.resolve() == store.directory.resolve():
                return store.remove(path.name)
            raise InvalidRequest(f"{path} is not in the cache; delete it by hand", field="model", given=name)
        case HubRepository(repo_id):
            return Hub().delete(repo_id)
        case _:
            assert_never(reference)


def _converted_alias(store: ConversionStore, name: str) -> Path | None:
    try:
        return store.find(find_gguf(name), preferred_precision())
    except ModelNotFound:  # its package is not installed; the alias is listed all the same
        return None


def _packaged_directory(name: str) -> Path | None:
    try:
        return find_directory(name)
    except ModelNotFound:
        return None


def _remove_conversions(store: ConversionStore, gguf: Path, name: str) -> int:
    made = [place for precision in get_args(Precision) if (place := store.find(gguf, precision)) is not None]
    if not made:
        raise ModelNotFound(f"nothing was converted from {gguf}", model=name)
    return sum(store.remove(place.name) for place in made)
