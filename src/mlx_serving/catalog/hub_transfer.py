"""Fetching one large file into the hub's cache so that what an interrupted transfer left is not fetched again.

The hub's own library begins each file anew: it writes under a name that no other process uses, because file locks
cannot be relied upon everywhere. Here the part that arrived stays beside its final place, and what makes that safe is
that the whole is compared with its digest before it gets its name.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlx_serving.catalog.integrity import matches

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

PART_SUFFIX = ".mlx-serving.incomplete"
_ATTEMPTS = 2


class DamagedTransferError(Exception):
    """What came is not what was asked for, more than once."""


def fetch_resuming(url: str, metadata: HfFileMetadata, blob: Path, bar_class: type[Any]) -> bool:
    """Bring the file at `url` to `blob`, which is named after its digest, beginning where an earlier attempt was
    interrupted. Blocks.

    False, with nothing done, where the library has to do it: for a file of unknown size or one that is too large for a
    plain transfer. Raises what the library raises, and `DamagedTransferError`.
    """
    from huggingface_hub import constants

    size = metadata.size
    if size is None or size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        return False
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(blob.name + PART_SUFFIX)
    for _ in range(_ATTEMPTS):
        with part.open("a+b") as file:  # not "wb": what is there is what this is about
            fcntl.flock(file, fcntl.LOCK_EX)
            if blob.exists():  # another process was first
                return True
            if file.seek(0, os.SEEK_END) > size:
                file.truncate(0)
            there = file.seek(0, os.SEEK_END)
            if there < size:
                _transfer(url, metadata.location, file, there, size, bar_class)
            file.flush()
            if matches(part, blob.name):
                part.replace(blob)
                return True
            file.truncate(0)
    raise DamagedTransferError(
        f"what the hub sends has another content than it says, {_ATTEMPTS} times in a row: "
        f"{blob.name[:12]}… was expected"
    )


def _transfer(url: str, location: str, file: IO[bytes], there: int, size: int, bar_class: type[Any]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers()
    if urlsplit(location).netloc != urlsplit(url).netloc:  # a token is for the hub, not for where it keeps its files
        headers.pop("authorization", None)
    http_get(location, file, resume_size=there, headers=headers, expected_size=size, tqdm_class=bar_class)
