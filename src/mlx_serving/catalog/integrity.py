"""Whether the files of a model are what they should be.

What can be told depends on where a file comes from. The hub's cache names each file after a digest of its content, so
that any change of it shows. Of every model, wherever it is from, it shows when a file is cut off, when one of several
weight files is missing or lacks a tensor that the index places in it, and when JSON is none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mlx_serving.catalog.safetensors import Tensor, read_header

INDEX = "model.safetensors.index.json"

OnBytes = Callable[[int, int], None]
"""Called with the bytes that were read, and those that will be."""

_PIECE_BYTES = 8 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_BLOB = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what it should be. `reason` ends a sentence that begins with its name."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file.name} {self.reason}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of so many files and bytes, `digests` of the files could be compared with what their content should be."""

    files: int
    size_bytes: int
    digests: int
    damages: tuple[Damage, ...]


def verify(directory: Path, on_bytes: OnBytes = lambda done, total: None) -> Verdict:
    """Read all files of a model and tell which are damaged. Changes nothing.

    `directory` is one that mlx-lm loads. `on_bytes` is called as the content is read; what it raises ends the work.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file() or path.is_symlink())
    present = [file for file in files if file.is_file()]
    sizes = {file: file.stat().st_size for file in present}
    named = {file: name for file in present if (name := content_digest(file)) is not None}
    total, done = sum(sizes[file] for file in named), 0
    damages = [Damage(file, "is missing: its link leads nowhere") for file in files if file not in sizes]
    for file, expected in named.items():
        before = done

        def read(count: int, before: int = before) -> None:
            on_bytes(before + count, total)

        try:
            found = _digest(file, expected, sizes[file], read)
        except OSError as error:
            damages.append(Damage(file, f"cannot be read: {error.strerror}"))
        else:
            if found != expected:
                damages.append(Damage(file, f"has another content than it should: {found[:12]}…, not {expected[:12]}…"))
        done += sizes[file]
    damages += _form_damages(directory, present, {damage.file for damage in damages})
    return Verdict(len(files), sum(sizes.values()), len(named), tuple(sorted(damages, key=lambda one: one.file)))


def look(directory: Path) -> list[Damage]:
    """The damages that show without reading the weights: a moment, also for a large model."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() or path.is_symlink())
    missing = [Damage(file, "is missing: its link leads nowhere") for file in files if not file.is_file()]
    lost = {damage.file for damage in missing}
    return [*missing, *_form_damages(directory, [file for file in files if file not in lost], lost)]


def content_digest(file: Path) -> str | None:
    """The digest that the content of a file of the hub's cache should have; None for files from elsewhere.

    The links of a snapshot lead to files that are named after the SHA-256 of their content, or for small ones after the
    id that git gives them.
    """
    if not file.is_symlink():
        return None
    name = file.resolve().name
    return name if _SHA256.fullmatch(name) or _GIT_BLOB.fullmatch(name) else None


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def matches(file: Path, expected: str, on_bytes: Callable[[int], None] = lambda count: None) -> bool:
    """Whether the content of `file` has this digest, of either kind; True for a name that is none.

    Raises `OSError` for a file that cannot be read.
    """
    if not (_SHA256.fullmatch(expected) or _GIT_BLOB.fullmatch(expected)):
        return True
    return _digest(file, expected, file.stat().st_size, on_bytes) == expected


def _digest(file: Path, like: str, size: int, on_bytes: Callable[[int], None]) -> str:
    """The digest of the same kind as `like`."""
    git_prefix = b"blob %d\0" % size
    digest = hashlib.sha256() if _SHA256.fullmatch(like) else hashlib.sha1(git_prefix, usedforsecurity=False)
    done = 0
    with file.open("rb") as source:
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
            done += len(piece)
            on_bytes(done)
    return digest.hexdigest()


def _form_damages(directory: Path, files: list[Path], known: set[Path]) -> Iterator[Damage]:
    """What the form of the files gives away, of those that are not `known` to be damaged."""
    headers: dict[str, Mapping[str, Tensor]] = {}
    for file in files:
        if file in known:
            continue
        try:
            if file.suffix == ".safetensors":
                headers[file.name] = read_header(file)
            elif file.suffix == ".json" and file.name != INDEX:
                msgspec.json.decode(file.read_bytes())
        except OSError as error:
            yield Damage(file, f"cannot be read: {error.strerror}")
        except msgspec.MsgspecError as error:
            yield Damage(file, f"is no JSON: {error}")
        except ValueError as error:
            yield Damage(file, f"is damaged: {error}")
    index = directory / INDEX
    if index.is_file() and index not in known:
        yield from _index_damages(index, headers, {file.name for file in files})
    elif not any(file.suffix == ".safetensors" for file in files):
        yield Damage(directory / "model.safetensors", "is missing")
    if not (directory / "config.json").is_file() and directory / "config.json" not in known:
        yield Damage(directory / "config.json", "is missing")


def _index_damages(index: Path, headers: Mapping[str, Mapping[str, Tensor]], present: set[str]) -> Iterator[Damage]:
    try:
        placed = msgspec.json.decode(index.read_bytes(), type=WeightIndex).weight_map
    except msgspec.MsgspecError as error:
        yield Damage(index, f"is no index of weights: {error}")
        return
    for shard in sorted(set(placed.values())):
        if shard not in present:
            yield Damage(index.parent / shard, "is missing")
        elif shard in headers:
            lacking = [name for name, place in placed.items() if place == shard and name not in headers[shard]]
            if lacking:
                more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
                yield Damage(index.parent / shard, f"lacks {lacking[0]}{more}, which the index places in it")


class WeightIndex(msgspec.Struct):
    """The part of a model's index that says which of its files has which tensor."""

    weight_map: dict[str, str]
