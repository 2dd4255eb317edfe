"""Which files of this machine may be loaded on behalf of somebody who is not at this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_serving.catalog.reference import looks_local
from mlx_serving.errors import InvalidRequest


def require_trusted(text: str, trusted: Sequence[Path] | None, field: str) -> None:
    """Refuse what somebody wrote for a model, or with `field` `adapter` for an adapter, if it is a path that leads out
    of the folders that are `trusted`. None trusts every path; no folder, none.

    Links are followed, also those of the files in a directory. Raises `InvalidRequest`, which names `field` and says
    nothing of what there is elsewhere.
    """
    if trusted is None or (field != "adapter" and not looks_local(text)):
        return
    folders = [folder.resolve() for folder in trusted]
    try:
        path = Path(text.strip()).expanduser().resolve()
    except (RuntimeError, OSError, ValueError):
        raise _refused(text, field) from None
    if not _is_within(path, folders) or not all(_is_within(file.resolve(), folders) for file in _inside(path)):
        raise _refused(text, field)


def _inside(path: Path) -> Sequence[Path]:
    try:
        return list(path.iterdir()) if path.is_dir() else ()
    except OSError:
        return ()


def _is_within(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _refused(text: str, field: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is a path outside of the folders in models.trusted_paths, got {text[:200]!r}",
        field=field,
        given=text[:200],
    )
