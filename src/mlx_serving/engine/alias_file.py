"""The aliases that were set, from one start to the next."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
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


def write(path: Path, aliases: Mapping[str, tuple[Target, ...]]) -> None:
    """In one step: whoever reads finds the old content or the new one. Raises `OSError`."""
    told = {name: [_told(target) for target in targets] for name, targets in aliases.items()}
    content = {"format": _FORMAT, "aliases": told}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _told(target: Target) -> dict[str, object]:
    said: dict[str, object] = {"model": target.model, "since": target.since, "profile": target.profile.given()}
    source = {"reference": target.reference, "revision": target.revision}
    return said | {name: value for name, value in source.items() if value is not None}


def _refused(path: Path, why: str) -> InvalidConfig:
    setting = "models.alias_file"
    return InvalidConfig(f"{setting}: {path} {why}", issues=[{"path": setting, "message": why, "value": str(path)}])
