"""A Backend layer that reads the pictures of a conversation: below it, a prompt has the pictures themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from mlx_serving.core.generation import Backend, ChatPrompt, Delta, GenerationRequest
from mlx_serving.core.images.image import Image, ImageSource
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.errors import ImageEncodingError, InvalidRequest, Overloaded, UnsupportedParameter
from mlx_serving.images.reader import ImageReader

_MAX_READING = 64
_BUSY_S = 1.0
_ROOM_FOR_THE_REST = 64 * 1024  # of a message to the worker: what stands in it beside the pictures, at least


class PromptImages:
    """`takes_images` says whether a model does; None is not known. `max_message_bytes` is what a worker takes in one
    message, in which pictures are base64."""

    def __init__(self, reader: ImageReader, takes_images: Callable[[str], bool | None], max_message_bytes: int) -> None:
        self._reader = reader
        self._takes_images = takes_images
        self._max_message_bytes = max_message_bytes
        self._reading = 0

    def reconfigure(self, policy: ImagePolicy, max_message_bytes: int) -> None:
        self._reader.policy = policy
        self._max_message_bytes = max_message_bytes

    def close(self) -> None:
        self._reader.close()

    async def read(self, model: str, sources: tuple[ImageSource, ...]) -> tuple[Image, ...]:
        """Raises `UnsupportedParameter` before anything is fetched or decoded for a model that is known to take no
        pictures, `Overloaded` when many requests have theirs read already, and what `ImageReader.read` raises."""
        where = sources[0].field
        if self._takes_images(model) is False:
            raise UnsupportedParameter(f"{where}: the model {model} takes no pictures", field=where)
        if self._reading >= _MAX_READING:
            raise Overloaded(f"The pictures of {_MAX_READING} requests are being read", retry_after=_BUSY_S)
        self._reading += 1
        try:
            images = await self._reader.read(sources)
        finally:
            self._reading -= 1
        self._require_room(images, sources)
        return images

    async def fill(self, model: str, prompt: ChatPrompt) -> ChatPrompt:
        """The prompt with its pictures. Raises the same."""
        if not prompt.sources:
            return prompt
        return replace(prompt, images=await self.read(model, prompt.sources), sources=())

    @contextmanager
    def telling(self, model: str, sources: tuple[ImageSource, ...]) -> Generator[None]:
        """What a worker refuses about `images` is told of the field that its caller knows: that of the first."""
        try:
            yield
        except InvalidRequest as error:
            if error.field != "images" or not sources:
                raise
            where = sources[0].field
            blind = self._takes_images(model) is False  # which may be known only now
            cls = UnsupportedParameter if blind else InvalidRequest
            limit, given = error.details.get("limit"), error.details.get("given")
            raise cls(f"{where}: {error.message}", field=where, limit=limit, given=given) from None

    def _require_room(self, images: tuple[Image, ...], sources: tuple[ImageSource, ...]) -> None:
        room, size = self._max_message_bytes - _ROOM_FOR_THE_REST, 0
        for image, source in zip(images, sources, strict=True):
            size += (len(image.data) + 2) // 3 * 4
            if size > room:
                raise ImageEncodingError(
                    f"The pictures up to {source.field} take {size} bytes in a message to the worker, which may have "
                    f"{room} (worker.max_message_bytes): send fewer or smaller ones, or with detail low",
                    field=source.field,
                    limit=room,
                    given=size,
                )


@dataclass(slots=True)
class _Reading:
    """The pictures of a request that has several answers."""

    sources: tuple[ImageSource, ...]
    task: asyncio.Task[tuple[Image, ...]]
    users: int = 0


class ImagesBackend:
    """The answers of one request, which are forks of its first, share what is read."""

    def __init__(self, inner: Backend, images: PromptImages) -> None:
        self._inner = inner
        self._images = images
        self._readings: dict[str, _Reading] = {}

    @property
    def reading(self) -> int:
        """Requests whose pictures are kept for their answers."""
        return len(self._readings)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises as `PromptImages.read`."""
        prompt = request.prompt
        if not isinstance(prompt, ChatPrompt) or not prompt.sources:
            async with self._inner.generate(request) as deltas:
                yield deltas
            return
        began = time.monotonic()
        async with self._read(request, prompt.sources) as images:
            if request.served is not None:
                request.served.images, request.served.images_s = images, time.monotonic() - began
            filled = replace(request, prompt=replace(prompt, images=images, sources=()))
            async with AsyncExitStack() as stack:
                with self._images.telling(request.model, prompt.sources):
                    deltas = await stack.enter_async_context(self._inner.generate(filled))
                yield deltas

    @asynccontextmanager
    async def _read(
        self, request: GenerationRequest, sources: tuple[ImageSource, ...]
    ) -> AsyncGenerator[tuple[Image, ...]]:
        first = request.fork_of or request.request_id
        reading = self._readings.get(first)
        if reading is None or reading.sources is not sources:
            task = asyncio.create_task(self._images.read(request.model, sources), name=f"images of {first}")
            reading = self._readings[first] = _Reading(sources, task)
        reading.users += 1
        try:
            yield await asyncio.shield(reading.task)
        finally:
            reading.users -= 1
            if not reading.users:
                await self._leave(first, reading)

    async def _leave(self, first: str, reading: _Reading) -> None:
        if self._readings.get(first) is reading:
            del self._readings[first]
        reading.task.cancel()
        await asyncio.wait((reading.task,))
        if not reading.task.cancelled():
            reading.task.exception()  # nobody may have waited for it
