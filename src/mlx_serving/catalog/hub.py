"""Models of the Hugging Face hub: found in its local cache, downloaded into it, listed, deleted.

The cache is the one that every program of that ecosystem shares. `huggingface_hub` is imported when it is needed: it
costs a third of a second.
"""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mlx_serving.catalog.hub_errors import translated
from mlx_serving.catalog.hub_progress import TransferProgress, silent_bar
from mlx_serving.catalog.hub_transfer import DamagedTransferError, fetch_resuming
from mlx_serving.catalog.integrity import INDEX, WeightIndex, content_digest, is_sha256, matches
from mlx_serving.catalog.progress import OnProgress
from mlx_serving.catalog.reference import HubRepository
from mlx_serving.catalog.store import size_of
from mlx_serving.errors import ModelLoadError, ModelNotFound

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo, HFCacheInfo

# What mlx-lm reads of a repository, without *.py: code from a repository is never run.
ALLOW_PATTERNS = (
    "*.json",
    "*.jsonl",
    "model*.safetensors",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jinja",
)
_PARALLEL_FILES = 4
_PART = re.compile(r"-\d+-of-\d+\.safetensors$")


@dataclass(frozen=True, slots=True)
class CachedRepository:
    """A complete snapshot in the local cache. `refs` are the branches and tags that lead to this commit."""

    repo_id: str
    commit: str
    refs: tuple[str, ...]
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub and its cache. What is None follows huggingface_hub's own environment: `HF_ENDPOINT`, `HF_HUB_CACHE` or
    `HF_HOME`, and for the token `HF_TOKEN` or the one that `hf auth login` keeps.
    """

    endpoint: str | None = None
    cache: Path | None = None

    def find(self, repository: HubRepository) -> Path | None:
        """The snapshot of `repository` if the local cache has it whole. Never uses the network.

        For a branch that is the commit it pointed to when it was last downloaded.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            directory = snapshot_download(
                repository.repo_id,
                revision=repository.revision,
                cache_dir=self.cache,
                allow_patterns=list(ALLOW_PATTERNS),
                local_files_only=True,
            )
        except LocalEntryNotFoundError:
            return None
        return Path(directory) if _is_complete(Path(directory)) else None

    def download(self, repository: HubRepository, on_progress: OnProgress) -> Path:
        """Download what is missing of `repository`, or bring it up to date; returns the snapshot's directory.

        Raises `ModelNotFound` for a repository or revision that does not exist, `ModelLoadError` for what forbids or
        interrupts the download, for a repository that is no model for MLX, and when the disk is too small.
        """
        files = self._plan(repository)
        _require_model(repository, [file.filename for file in files])
        self._require_space(files)
        transfer = TransferProgress(
            repository.repo_id,
            total=sum(file.file_size or 0 for file in files),
            done=sum(file.file_size or 0 for file in files if not file.will_download),
            on_progress=on_progress,
        )
        try:
            self._fetch(repository, [file for file in files if file.will_download], transfer)
            return self._snapshot(repository, *ALLOW_PATTERNS)
        except Exception as error:
            if transfer.callback_error is not None:
                raise transfer.callback_error from None
            raise translated(error, repository) from error

    def cached(self) -> list[CachedRepository]:
        """The models that the local cache has whole, by name."""
        info = self._scan()
        found = [
            CachedRepository(
                repo_id=repo.repo_id,
                commit=revision.commit_hash,
                refs=tuple(sorted(revision.refs)),
                path=revision.snapshot_path,
                size_bytes=revision.size_on_disk,
            )
            for repo in (info.repos if info else ())
            if repo.repo_type == "model"
            for revision in repo.revisions
            if self.find(HubRepository(repo.repo_id, revision.commit_hash)) is not None
        ]
        return sorted(found, key=lambda entry: (entry.repo_id, entry.commit))

    def incomplete(self) -> list[tuple[str, Path, int]]:
        """Repositories of which the cache has a part, by name: where it is, and its bytes. A download completes them,
        and goes on where it was interrupted."""
        whole = {entry.repo_id for entry in self.cached()}
        found: list[tuple[str, Path, int]] = []
        for folder in sorted(self.directory.glob("models--*--*")):
            repo_id = folder.name.removeprefix("models--").replace("--", "/", 1)
            if repo_id not in whole and (size := size_of(folder)) > 0:
                found.append((repo_id, folder, size))
        return found

    def free_bytes(self) -> int:
        """Of the disk that the cache is on, or will be."""
        existing = self.directory
        while not existing.exists():
            existing = existing.parent
        return shutil.disk_usage(existing).free

    def discard(self, file: Path) -> None:
        """Remove a file of a snapshot with its content, so that the next download brings it anew."""
        content = file.resolve()
        file.unlink(missing_ok=True)
        if content.is_relative_to(self.directory.resolve()):
            content.unlink(missing_ok=True)

    def delete(self, repo_id: str) -> int:
        """Remove all snapshots of `repo_id` from the local cache, and what interrupted downloads left; returns the
        bytes that this freed.

        Raises `ModelNotFound` when there is none.
        """
        folder = self._folder(repo_id)
        if not folder.is_dir():
            raise ModelNotFound(f"{repo_id} is not in the local cache of the hub", model=repo_id)
        freed = size_of(folder)
        shutil.rmtree(folder)
        shutil.rmtree(self.directory / ".locks" / folder.name, ignore_errors=True)
        return freed

    @property
    def directory(self) -> Path:
        """Of the cache, which need not exist."""
        from huggingface_hub import constants

        return (self.cache or Path(constants.HF_HUB_CACHE)).expanduser().absolute()

    def _folder(self, repo_id: str) -> Path:
        return self.directory / f"models--{repo_id.replace('/', '--')}"

    def _plan(self, repository: HubRepository) -> list[DryRunFileInfo]:
        from huggingface_hub import snapshot_download

        try:
            # Makes the library keep the list of all files first, by which it tells a snapshot that is whole from one
            # whose download was interrupted.
            self._snapshot(repository, "config.json")
            files = snapshot_download(
                repository.repo_id,
                revision=repository.revision,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                allow_patterns=list(ALLOW_PATTERNS),
                tqdm_class=silent_bar(),
                dry_run=True,
            )
        except Exception as error:
            raise translated(error, repository) from error
        return sorted(files, key=lambda file: file.filename)  # the library asks in parallel: any order

    def _fetch(self, repository: HubRepository, files: list[DryRunFileInfo], transfer: TransferProgress) -> None:
        from huggingface_hub import hf_hub_download

        def fetch(file: DryRunFileInfo) -> None:
            self._fetch_resuming(repository, file, transfer)
            for again in (False, True):
                place = Path(
                    hf_hub_download(
                        repository.repo_id,
                        file.filename,
                        revision=file.commit_hash,
                        cache_dir=self.cache,
                        endpoint=self.endpoint,
                        tqdm_class=transfer.bar_class(),
                        force_download=again,
                    )
                )
                # What has a SHA-256 was compared with it as it came.
                expected = content_digest(place)
                if expected is None or is_sha256(expected) or matches(place, expected):
                    return
                transfer.add(-place.stat().st_size)
            self.discard(place)
            raise DamagedTransferError(f"{file.filename} has another content than the hub says")

        with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="hub-download") as pool:
            pending = [pool.submit(fetch, file) for file in files]
            try:
                for future in as_completed(pending):
                    future.result()
            except BaseException:
                transfer.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch_resuming(self, repository: HubRepository, file: DryRunFileInfo, transfer: TransferProgress) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(repository.repo_id, file.filename, revision=file.commit_hash, endpoint=self.endpoint)
        metadata = get_hf_file_metadata(url, headers=build_hf_headers(), endpoint=self.endpoint)
        if metadata.etag is not None and is_sha256(metadata.etag):
            blob = self._folder(repository.repo_id) / "blobs" / metadata.etag
            fetch_resuming(url, metadata, blob, transfer.bar_class())

    def _snapshot(self, repository: HubRepository, *patterns: str) -> Path:
        from huggingface_hub import snapshot_download

        directory = snapshot_download(
            repository.repo_id,
            revision=repository.revision,
            cache_dir=self.cache,
            endpoint=self.endpoint,
            allow_patterns=list(patterns),
            tqdm_class=silent_bar(),
        )
        return Path(directory)

    def _require_space(self, files: list[DryRunFileInfo]) -> None:
        needed = sum(file.file_size or 0 for file in files if file.will_download)
        free = self.free_bytes()
        if needed > free:
            raise ModelLoadError(
                f"the download needs {needed:,} bytes, but the disk of {self.directory} has {free:,} free",
                needed_bytes=needed,
                free_bytes=free,
            )

    def _scan(self) -> HFCacheInfo | None:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            return scan_cache_dir(self.cache)
        except CacheNotFound:
            return None


def _require_model(repository: HubRepository, names: list[str]) -> None:
    missing = [] if "config.json" in names else ["config.json"]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("weights (model*.safetensors)")
    if missing:
        raise ModelLoadError(
            f"{repository} is no model that MLX can load: it has no {' and no '.join(missing)}; "
            "of a GGUF repository, download a file and give its path",
            model=repository.repo_id,
        )


def _is_complete(snapshot: Path) -> bool:
    """Whether config and all weights are there (the links of a snapshot lead nowhere for files that are not).

    The library knows of all files, but only of those snapshots that a recent version of it downloaded.
    """
    if not (snapshot / "config.json").is_file():
        return False
    index = snapshot / INDEX
    if not index.is_file():
        present = {path.name for path in snapshot.glob("model*.safetensors") if path.is_file()}
        return bool(present) and not any(_PART.search(name) for name in present)
    try:
        shards = set(msgspec.json.decode(index.read_bytes(), type=WeightIndex).weight_map.values())
    except (OSError, msgspec.MsgspecError):
        return False
    return all((snapshot / shard).is_file() for shard in shards)
