from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from huggingface_hub import constants as constants

@dataclass
class DryRunFileInfo:
    commit_hash: str
    file_size: int | None
    filename: str
    local_path: str
    is_cached: bool
    will_download: bool

@dataclass(frozen=True)
class CachedRevisionInfo:
    commit_hash: str
    snapshot_path: Path
    size_on_disk: int
    refs: frozenset[str]

@dataclass(frozen=True)
class CachedRepoInfo:
    repo_id: str
    repo_type: str
    revisions: frozenset[CachedRevisionInfo]

@dataclass(frozen=True)
class HFCacheInfo:
    repos: frozenset[CachedRepoInfo]

@dataclass(frozen=True)
class HfFileMetadata:
    etag: str | None
    location: str
    size: int | None

def hf_hub_url(repo_id: str, filename: str, *, revision: str | None = None, endpoint: str | None = None) -> str: ...
def get_hf_file_metadata(
    url: str, *, headers: dict[str, str] | None = None, endpoint: str | None = None
) -> HfFileMetadata: ...
def scan_cache_dir(cache_dir: str | Path | None = None) -> HFCacheInfo: ...
def hf_hub_download(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    tqdm_class: type[Any] | None = None,
    force_download: bool = False,
) -> str: ...
@overload
def snapshot_download(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    allow_patterns: list[str] | None = None,
    local_files_only: bool = False,
    tqdm_class: type[Any] | None = None,
) -> str: ...
@overload
def snapshot_download(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    allow_patterns: list[str] | None = None,
    tqdm_class: type[Any] | None = None,
    dry_run: Literal[True],
) -> list[DryRunFileInfo]: ...
