"""What is computed once for several requests, and what is kept for those to come, as people configure it: see
`config.policies`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from mlx_serving.core.prefix.disk import DiskPolicy
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.response_index import ResponseCachePolicy
from mlx_serving.core.response_store import StorePolicy

_DISK = DiskPolicy()
_PREFIXES = PrefixCachePolicy()
_RESPONSES = ResponseCachePolicy()
_STORED = StorePolicy()


@dataclass(frozen=True, slots=True)
class SharingConfig:
    """Whether equal requests share a computation."""

    enabled: Annotated[
        bool,
        Field(
            description="Requests that are in flight at the same time and have the same answer, because they are "
            "greedy or seeded and the same in all that matters, are computed once."
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class ResponseCacheConfig(ResponseCachePolicy):
    """Answers that are kept to be given again: to requests that are greedy or seeded, and the same in all that
    matters."""

    enabled: Annotated[bool, Field(description="Whether answers are kept.")] = False
    max_entries: Annotated[int, Field(ge=1, le=10_000_000, description="Answers that are kept at most.")] = (
        _RESPONSES.max_entries
    )
    max_tokens: Annotated[int, Field(ge=1, description="Tokens of all answers together at most.")] = (
        _RESPONSES.max_tokens
    )
    max_bytes: Annotated[int, Field(ge=1, description="Size of all answers together at most, in bytes.")] = (
        _RESPONSES.max_bytes
    )
    ttl_s: Annotated[float, Field(gt=0, description="How long an answer is kept, in seconds.")] = _RESPONSES.ttl_s
    unseeded: Annotated[
        bool,
        Field(description="Also keep answers that were left to chance: the same request then gets the same draw."),
    ] = _RESPONSES.unseeded
    per_caller: Annotated[
        bool,
        Field(description="Nobody gets what was computed for another API key, nor learns that it was."),
    ] = _RESPONSES.per_caller
    path: Annotated[
        str | None,
        Field(
            min_length=1,
            description="SQLite file that keeps the answers from one start to the next; null keeps them in memory.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class StoredResponsesConfig(StorePolicy):
    """What `/v1/responses` keeps, so that clients may go on from it."""

    max_entries: Annotated[int, Field(ge=1, le=10_000_000, description="Responses that are kept at most.")] = (
        _STORED.max_entries
    )
    max_bytes: Annotated[int, Field(ge=1, description="Size of all of them together at most, in bytes.")] = (
        _STORED.max_bytes
    )
    ttl_s: Annotated[float, Field(gt=0, description="How long one is kept after its last use, in seconds.")] = (
        _STORED.ttl_s
    )
    path: Annotated[
        str | None,
        Field(
            min_length=1,
            description="SQLite file that keeps them from one start to the next, which only its owner can read; null "
            "keeps them in memory only.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class PrefixDiskConfig(DiskPolicy):
    """What is kept on disk of what is kept, for those who come after a restart."""

    path: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Folder for files that only their owner can read; several servers may share it. They hold what "
            "was said, as the model sees it. Null keeps nothing on disk.",
        ),
    ] = None
    max_bytes: Annotated[
        int | None,
        Field(
            ge=1,
            description="Size of all files together at most, in bytes; null is 30 GiB, but no more than a quarter of "
            "what is free.",
        ),
    ] = _DISK.max_bytes
    max_age_s: Annotated[
        float, Field(gt=0, description="Files that were not used for so long are deleted, in seconds.")
    ] = _DISK.max_age_s
    preload_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="What was used last of a model is read when it is loaded, before anybody asks: so many bytes "
            "of files at most, and no more than half of the free memory for what is kept.",
        ),
    ] = _DISK.preload_bytes


@dataclass(frozen=True, slots=True)
class PrefixCacheConfig(PrefixCachePolicy):
    """What is kept of prompts and answers, so that others that begin alike need not compute it again."""

    enabled: Annotated[bool, Field(description="Whether anything is kept.")] = _PREFIXES.enabled
    memory_bytes: Annotated[
        int | None,
        Field(
            ge=0,
            description="Memory for what is kept at most, in bytes; null is half of the memory for KV caches. Running "
            "sequences take what they need of it.",
        ),
    ] = _PREFIXES.memory_bytes
    block_tokens: Annotated[
        int, Field(ge=16, le=256, description="Tokens that are kept, found and let go of together.")
    ] = _PREFIXES.block_tokens
    per_caller: Annotated[
        bool,
        Field(description="Nobody uses what was computed for another API key, or another `user` where there are none."),
    ] = _PREFIXES.per_caller
    disk: PrefixDiskConfig = field(default_factory=PrefixDiskConfig)
