"""All pictures of a request, from wherever they are: every rule is checked before the next costly thing is done."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from mlx_serving.core.images.addresses import web_address
from mlx_serving.core.images.image import Image, ImageSource
from mlx_serving.core.images.rules import (
    ImagePolicy,
    named_format,
    require_count,
    require_request_bytes,
    require_request_size,
)
from mlx_serving.core.images.sources import Inline, Location, Named, Remote, decoded, locate
from mlx_serving.images.decoding import Header, decode, inspect
from mlx_serving.images.fetching import Fetcher
from mlx_serving.images.files import read_file, require_folders

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class _File:
    """`name` is the same for the same content."""

    data: bytes = field(repr=False)
    media_type: str | None
    name: bytes


class ImageReader:
    """Reads by the `policy` of the moment. Decoding is done on a few threads, so that no loop waits for it, and no
    more memory is taken than so many pictures need."""

    def __init__(self, policy: ImagePolicy, fetcher: Fetcher | None = None) -> None:
        self.policy = policy
        self._fetcher = fetcher or Fetcher()
        self._pool: ThreadPoolExecutor | None = None

    async def read(self, sources: Sequence[ImageSource]) -> tuple[Image, ...]:
        """The pictures, in their order. Nothing is fetched or read before all sources are known to be allowed, nothing
        is decoded before all headers are. What is there twice is got once, and decoded once.

        Raises `ImageEncodingError` of the kind that tells what is wrong, with the `field` of the source.
        """
        policy = self.policy
        if len(sources) > policy.max_images:
            require_count(len(sources), sources[policy.max_images].field, policy)
        located = [locate(source) for source in sources]
        for location, source in zip(located, sources, strict=True):
            _require_allowed(location, source, policy)
        files = await self._files(located, sources, policy)
        headers: dict[tuple[bytes, str | None], Header] = {}
        pixels = 0
        for file, source in zip(files, sources, strict=True):
            if (file.name, file.media_type) not in headers:
                header = await self._run(inspect, file.data, file.media_type, source.field, policy)
                headers[file.name, file.media_type] = header
                pixels += header.pixels
                require_request_size(pixels, source.field, policy)
        images: dict[tuple[bytes, str], Image] = {}
        for file, source in zip(files, sources, strict=True):
            if (file.name, source.detail) not in images:
                header = headers[file.name, file.media_type]
                image = await self._run(decode, file.data, header, source.detail, source.field, policy)
                images[file.name, source.detail] = image
        return tuple(images[file.name, source.detail] for file, source in zip(files, sources, strict=True))

    def close(self) -> None:
        """What is being decoded is finished, and nobody waits for it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def _files(
        self, located: Sequence[Location], sources: Sequence[ImageSource], policy: ImagePolicy
    ) -> list[_File]:
        size = 0
        wanted: dict[Hashable, asyncio.Task[_File]] = {}
        keys: list[Hashable] = []

        async def load(location: Location, source: ImageSource) -> _File:
            nonlocal size
            file = await self._file(location, source, policy)
            size += len(file.data)
            require_request_bytes(size, source.field, policy)
            return file

        for number, (location, source) in enumerate(zip(located, sources, strict=True)):
            # Hashing what is sent inline would take as long as decoding it, here where everybody waits.
            key = number if isinstance(location, Inline) else (location, source.local, source.media_type)
            keys.append(key)
            if key not in wanted:
                wanted[key] = asyncio.create_task(load(location, source))
        await _all_or_none(wanted.values())
        return [wanted[key].result() for key in keys]

    async def _file(self, location: Location, source: ImageSource, policy: ImagePolicy) -> _File:
        match location:
            case Inline():
                inline = location
            case Named():
                inline = Inline(await self._run(_read_file, location.path, source, policy))
            case Remote():
                inline = await self._fetcher.fetch(location.url, policy, source.field)
        if source.media_type is not None:  # of who names it: whatever else says what it is
            inline = replace(inline, media_type=source.media_type)
        return await self._run(_named, inline, source.field, policy)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "images")
        return await asyncio.wrap_future(self._pool.submit(work, *args, **kwargs))


def _require_allowed(location: Location, source: ImageSource, policy: ImagePolicy) -> None:
    match location:
        case Inline():
            named_format(source.media_type or location.media_type, source.field)
        case Remote():
            web_address(location.url, policy.fetch, source.field)
        case Named():
            if not source.local:
                require_folders(source.field, policy)


def _named(inline: Inline, where: str, policy: ImagePolicy) -> _File:
    data = decoded(inline, where, policy)
    return _File(data, inline.media_type, hashlib.sha256(data).digest())


def _read_file(path: str, source: ImageSource, policy: ImagePolicy) -> bytes:
    return read_file(path, source.field, policy, local=source.local)


async def _all_or_none(tasks: Iterable[asyncio.Task[T]]) -> None:
    """Returns when all are done. When one fails the others are cancelled, and its error is raised."""
    running = list(tasks)
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
