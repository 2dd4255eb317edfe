"""The aliases that were set, from one start to the next. Servers may share the file: each changes only the names that
it moves."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlx_serving.core.alias_table import Target
from mlx_serving.errors import InvalidConfig

_FORMAT = 1


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    aliases: dict[str, list[Target]]


def read(path: Path) -> Mapping[str, tuple[Target, ...]]:
    """Nothing where there is no file. Raises `InvalidConfig` for one that is not ours, or cannot be read."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _refused(path, f"cannot be read: {error}") from None
    if content.format != _FORMAT:
        raise _refused(path, f"is of format {content.format}, and this version reads {_FORMAT}")
    return {name: tuple(targets) for name, targets in content.aliases.items() if targets}


def write(path: Path, aliases: Mapping[str, tuple[Target, ...]], changed: Collection[str]) -> None:
    """Of all `aliases`, those that have `changed` take the place of what the file says of them; the others are as it
    has them, or as they are here where it cannot be read any more.

    In one step: whoever reads finds the old content or the new one. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        try:
            kept = {name: targets for name, targets in read(path).items() if name not in changed}
        except InvalidConfig:
            kept = aliases
        said = {**kept, **{name: aliases[name] for name in changed if name in aliases}}
        told = {name: [_told(target) for target in targets] for name, targets in said.items()}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                content = msgspec.json.encode({"format": _FORMAT, "aliases": told})
                file.write(msgspec.json.format(content, indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """No other server changes its aliases in `folder` meanwhile."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _told(target: Target) -> dict[str, object]:
    said: dict[str, object] = {"model": target.model, "since": target.since, "profile": target.profile.given()}
    source = {"reference": target.reference, "revision": target.revision}
    return said | {name: value for name, value in source.items() if value is not None}


def _refused(path: Path, why: str) -> InvalidConfig:
    setting = "models.alias_file"
    return InvalidConfig(f"{setting}: {path} {why}", issues=[{"path": setting, "message": why, "value": str(path)}])
