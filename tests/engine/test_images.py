"""The layer that reads pictures, above a Backend that remembers what it got."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mlx_serving.core.generation import ChatPrompt, GenerationRequest, SamplingParams, Served
from mlx_serving.core.images.image import Image, ImageSource
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.engine.images import ImagesBackend, PromptImages
from mlx_serving.errors import ImageEncodingError, InvalidImageInput, InvalidRequest, Overloaded, UnsupportedParameter
from mlx_serving.images.reader import ImageReader

from ..event_log import until
from .scripted import Script, ScriptedBackend

SOURCES = (ImageSource("a", field="first"), ImageSource("b", field="second"))
PROMPT = ChatPrompt(({"role": "user", "content": [{"type": "image"}, {"type": "image"}]},), sources=SOURCES)


class SlowReader(ImageReader):
    """Reads when it is told to."""

    def __init__(self) -> None:
        super().__init__(ImagePolicy())
        self.told = asyncio.Event()
        self.error: Exception | None = None
        self.reads = 0
        self.cancelled = 0

    async def read(self, sources: Sequence[ImageSource]) -> tuple[Image, ...]:
        self.reads += 1
        try:
            await self.told.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return tuple(Image(bytes(300), "0" * 64, 1, 1) for _ in sources)


def layer(
    reader: SlowReader, *, sees: bool | None = True, room: int = 10**6
) -> tuple[ImagesBackend, ScriptedBackend, PromptImages]:
    below, images = ScriptedBackend(), PromptImages(reader, lambda _: sees, room)
    return ImagesBackend(below, images), below, images


def request(name: str = "r", fork_of: str | None = None, prompt: ChatPrompt = PROMPT) -> GenerationRequest:
    return GenerationRequest(name, "m", prompt, SamplingParams(max_tokens=1), fork_of=fork_of)


async def ask(backend: ImagesBackend, asked: GenerationRequest) -> str:
    async with backend.generate(asked) as deltas:
        return "".join([delta.text async for delta in deltas])


async def test_what_goes_down_has_the_pictures_and_no_sources() -> None:
    reader = SlowReader()
    reader.told.set()
    backend, below, _ = layer(reader)
    served = Served()
    assert await ask(backend, replace(request(), served=served)) == "ab"
    prompt = below.requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert (len(prompt.images), prompt.sources) == (2, ())
    assert served.images == prompt.images


async def test_a_prompt_without_pictures_passes() -> None:
    backend, below, images = layer(reader := SlowReader())
    asked = request(prompt=replace(PROMPT, sources=()))
    await ask(backend, asked)
    assert below.requests == [asked]
    assert await images.fill("m", replace(PROMPT, sources=())) == replace(PROMPT, sources=())
    assert reader.reads == 0


async def test_the_answers_of_one_request_share_what_is_read() -> None:
    reader = SlowReader()
    backend, below, _ = layer(reader)
    tasks = [asyncio.create_task(ask(backend, each)) for each in (request(), request("r-1", "r"), request("r-2", "r"))]
    other = asyncio.create_task(ask(backend, request("s")))
    same_name = asyncio.create_task(ask(backend, request(prompt=replace(PROMPT, sources=SOURCES[:1]))))
    await asyncio.sleep(0)
    reader.told.set()
    await asyncio.gather(*tasks, other, same_name)
    assert reader.reads == 3
    assert len(below.requests) == 5


async def test_a_refusal_is_that_of_all_answers_and_is_read_anew_the_next_time() -> None:
    reader = SlowReader()
    reader.error = InvalidImageInput("no", field="first")
    reader.told.set()
    backend, below, _ = layer(reader)
    outcomes = await asyncio.gather(ask(backend, request()), ask(backend, request("r-1", "r")), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InvalidImageInput] * 2
    assert below.requests == []
    reader.error = None
    assert await ask(backend, request()) == "ab"


async def test_the_last_one_who_leaves_ends_the_reading() -> None:
    reader = SlowReader()
    backend, _, _ = layer(reader)
    first = asyncio.create_task(ask(backend, request()))
    fork = asyncio.create_task(ask(backend, request("r-1", "r")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert reader.cancelled == 0
    fork.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fork
    assert (reader.reads, reader.cancelled) == (1, 1)


async def test_pictures_are_kept_as_long_as_an_answer_runs() -> None:
    reader = SlowReader()
    reader.told.set()
    backend, _, _ = layer(reader)
    async with backend.generate(request()):
        assert backend.reading == 1
    assert backend.reading == 0


async def test_a_model_that_is_known_to_take_none_is_not_asked() -> None:
    reader = SlowReader()
    backend, below, images = layer(reader, sees=False)
    with pytest.raises(UnsupportedParameter, match="first: the model m takes no pictures"):
        await ask(backend, request())
    with pytest.raises(UnsupportedParameter):
        await images.fill("m", PROMPT)
    assert (reader.reads, below.requests) == (0, [])


async def test_a_model_of_which_nothing_is_known_may_take_some() -> None:
    reader = SlowReader()
    reader.told.set()
    backend, _, _ = layer(reader, sees=None)
    assert await ask(backend, request()) == "ab"


async def test_what_does_not_fit_into_a_message_names_the_first_that_is_too_much() -> None:
    reader = SlowReader()
    reader.told.set()
    backend, below, images = layer(reader, room=64 * 1024 + 799)
    with pytest.raises(ImageEncodingError, match=r"take 800 bytes .* 799 \(worker\.max_message_bytes\)") as raised:
        await ask(backend, request())
    assert raised.value.field == "second"
    images.reconfigure(ImagePolicy(), 64 * 1024 + 800)
    assert await ask(backend, request()) == "ab"
    assert len(below.requests) == 1


async def test_only_so_many_requests_have_their_pictures_read() -> None:
    reader = SlowReader()
    backend, below, _ = layer(reader)
    tasks = [asyncio.create_task(ask(backend, request(f"r{number}"))) for number in range(64)]

    async def all_are_read() -> bool:
        return reader.reads == 64

    await until(all_are_read)
    with pytest.raises(Overloaded) as raised:
        await ask(backend, request("one too many"))
    assert raised.value.retry_after == 1.0
    reader.told.set()
    await asyncio.gather(*tasks)
    assert len(below.requests) == 64


@pytest.mark.parametrize(("sees", "kind"), [(False, UnsupportedParameter), (True, InvalidRequest)])
async def test_what_the_worker_refuses_is_told_of_the_field_that_was_sent(
    sees: bool, kind: type[InvalidRequest]
) -> None:
    """Whether a model takes pictures may be known only when it is loaded."""
    reader = SlowReader()
    reader.told.set()
    known: list[bool | None] = [None, sees]
    below, images = ScriptedBackend(), PromptImages(reader, lambda _: known.pop(0), 10**6)
    below.scripts = [Script(at_entry=InvalidRequest("no place for them", field="images", limit=1, given=2))]
    with pytest.raises(InvalidRequest) as raised:
        await ask(ImagesBackend(below, images), request())
    assert type(raised.value) is kind
    assert raised.value.message == "first: no place for them"
    assert raised.value.field == "first"
    assert (raised.value.details["limit"], raised.value.details["given"]) == (1, 2)


async def test_what_else_is_refused_is_told_as_it_is() -> None:
    reader = SlowReader()
    reader.told.set()
    backend, below, _ = layer(reader)
    refusal = InvalidRequest("too long", field="max_tokens")
    below.scripts = [Script(at_entry=refusal)]
    with pytest.raises(InvalidRequest) as raised:
        await ask(backend, request())
    assert raised.value is refusal
