"""Pictures in files of this machine."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mlx_serving.core.images.rules import ImagePolicy, require_bytes
from mlx_serving.errors import ImageFileNotFound, InvalidImageInput, UnsafeImagePath


def require_folders(where: str, policy: ImagePolicy) -> None:
    """Raises `UnsafeImagePath` when no path may be read on behalf of somebody who is not at this machine."""
    if not policy.folders:
        raise UnsafeImagePath(
            f"{where} is a path, and this server reads none (images.folders): send the picture itself, as a data URI",
            field=where,
        )


def read_file(text: str, where: str, policy: ImagePolicy, *, local: bool) -> bytes:
    """A file, of any folder if a `local` program asks, else of those that are allowed, wherever links lead.

    Raises `UnsafeImagePath`, which says nothing of what there is elsewhere, `ImageFileNotFound`, `InvalidImageInput`.
    """
    try:
        path = Path(text).expanduser().resolve()
        folders = [Path(each).expanduser().resolve() for each in (policy.folders or "").split(os.pathsep) if each]
    except (OSError, RuntimeError, ValueError):
        raise UnsafeImagePath(f"{where} is a path that leads nowhere", field=where) from None
    if not local and not any(path.is_relative_to(folder) for folder in folders):
        raise UnsafeImagePath(
            f"{where} is a path outside of the folders in images.folders, got {text[:200]!r}",
            field=where,
            given=text[:200],
        )
    try:
        # A pipe must not be waited for, and what has become a link since is not followed.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ImageFileNotFound(
            f"{where} cannot be read: {error.strerror}, got {text[:200]!r}", field=where, given=text[:200]
        ) from None
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise InvalidImageInput(f"{where} is no file, got {text[:200]!r}", field=where, given=text[:200])
        if not local:
            _require_unmoved(path, facts, where)
        require_bytes(facts.st_size, where, policy)
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(policy.max_bytes + 1)  # it may have grown
    finally:
        os.close(handle)
    require_bytes(len(data), where, policy)
    return data


def _require_unmoved(path: Path, opened: os.stat_result, where: str) -> None:
    """Somebody may have put a link into the way between the look and the opening."""
    try:
        same = path.resolve() == path and os.path.samestat(path.stat(), opened)
    except OSError:
        same = False
    if not same:
        raise UnsafeImagePath(f"{where} is a path that changes while it is read", field=where)
