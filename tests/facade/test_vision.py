"""Pictures in the parameters of the engine's methods, up to a Backend that takes what a worker would get."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image as pillow  # noqa: N813  as its own documentation has it

from mlx_serving import Engine, ImageProcessedChunk, SyncEngine, VisionModelHandle
from mlx_serving.core.generation import ChatPrompt, Delta, FinishReason, GenerationRequest, GenerationStats
from mlx_serving.core.images.rules import ImagePolicy
from mlx_serving.engine.images import ImagesBackend, PromptImages
from mlx_serving.errors import (
    EngineError,
    ImageFetchFailed,
    ImageFileNotFound,
    InvalidImageInput,
    InvalidRequest,
    ModelLoadError,
    UnsupportedImageFormat,
    UnsupportedParameter,
)
from mlx_serving.facade.pictures import source_of
from mlx_serving.facade.shapes import ErrorChunk, MetadataChunk, TokenChunk
from mlx_serving.facade.vision import VisionGenerationStats, VisionGeneratorParams
from mlx_serving.images.reader import ImageReader

from ..engine.scripted import Script, ScriptedBackend
from ..pictures import data_uri, file_of, picture, png

ENDED = Delta("", (), FinishReason.STOP, GenerationStats(9, 2, 0.1, 20.0, 0.2))


class Seeing:
    """Stands for the core: what reads pictures, above a Backend that remembers."""

    def __init__(self) -> None:
        self.backend = ScriptedBackend([Script(deltas=(Delta("Hello", (1,)), ENDED))])
        self.images = PromptImages(ImageReader(ImagePolicy()), lambda _: True, 1_000_000)
        self._layer = ImagesBackend(self.backend, self.images)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.images.close()

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        return self._layer.generate(request)

    @property
    def prompt(self) -> ChatPrompt:
        prompt = self.backend.requests[-1].prompt
        assert isinstance(prompt, ChatPrompt)
        return prompt


@pytest_asyncio.fixture(loop_scope="session")
async def seeing(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[Engine, Seeing]]:
    engine, core = Engine(), Seeing()
    monkeypatch.setattr(engine, "_core", core)
    yield engine, core
    await core.stop()


def asked(*parts: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


async def test_every_form_of_a_picture_is_the_same_picture(seeing: tuple[Engine, Seeing], tmp_path: Path) -> None:
    engine, core = seeing
    file = tmp_path / "a b.png"
    file.write_bytes(png())
    base64 = data_uri(png()).partition(",")[2]
    values = (
        str(file), file, file.as_uri(), data_uri(png()), base64, png(), bytearray(png()), memoryview(png()), picture(),
        {"source": png(), "format": "png"}, {"source": str(file)},
    )  # fmt: skip
    result = await engine.chat(asked("unused", *({"type": "image", "image": value} for value in values))
                               | {"messages": [{"role": "user", "content": [
                                   {"type": "text", "text": "These?"},
                                   *({"type": "image", "image": value} for value in values),
                                   {"type": "image_url", "image_url": {"url": data_uri(png())}},
                                   {"type": "image_url", "image_url": data_uri(png())},
                               ]}]})  # fmt: skip
    assert result.text == "Hello"
    assert len({image.digest for image in core.prompt.images}) == 1
    assert len(core.prompt.images) == len(values) + 2
    assert core.prompt.messages[0]["content"] == [{"type": "text", "text": "These?"}, *[{"type": "image"}] * 13]


async def test_the_detail_of_a_picture_is_its_own(seeing: tuple[Engine, Seeing]) -> None:
    engine, core = seeing
    large = file_of(picture(size=(1000, 500)))
    await engine.chat(
        asked(
            {"type": "image", "image": large, "detail": "low"},
            {"type": "image_url", "image_url": {"url": data_uri(large), "detail": "high"}},
            {"type": "image", "image": {"source": large, "detail": "low"}},
        )
    )
    assert [(image.width, image.detail) for image in core.prompt.images] == [(512, "low"), (1000, "high"), (512, "low")]


@pytest.mark.parametrize("mode", ["CMYK", "F", "RGBA", "L", "I;16"])
def test_images_of_pillow_of_every_mode_are_taken(mode: str) -> None:
    image = pillow.new(mode, (4, 4))
    source = source_of(image, "image")
    assert isinstance(source.value, bytes)
    assert pillow.open(io.BytesIO(source.value)).size == (4, 4)


async def test_conversations_without_pictures_are_as_they_were(seeing: tuple[Engine, Seeing]) -> None:
    engine, core = seeing
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    await engine.chat(asked(*parts))
    assert core.prompt.messages[0]["content"] == parts
    assert core.prompt.images == ()


WRONG: list[tuple[object, type[EngineError], str]] = [
    ({"type": "image"}, InvalidImageInput, "messages[0].content[0].image"),
    ({"type": "image", "image": 5}, InvalidImageInput, "messages[0].content[0].image"),
    ({"type": "image", "image": "nothing.png"}, ImageFileNotFound, "messages[0].content[0].image"),
    ({"type": "image", "image": b"%PDF"}, UnsupportedImageFormat, "messages[0].content[0].image"),
    ({"type": "image", "image": "http://127.0.0.1/secret"}, ImageFetchFailed, "messages[0].content[0].image"),
    ({"type": "image", "image": png(), "detail": "huge"}, InvalidRequest, "messages[0].content[0].image"),
    ({"type": "image", "image": {"source": png(), "format": "tiff"}}, InvalidRequest, "content[0].image.format"),
    ({"type": "image", "image": {"source": png(), "format": "jpg"}}, UnsupportedImageFormat, "content[0].image.source"),
    ({"type": "image", "image": {"source": png(), "metadata": {}}}, UnsupportedParameter, "content[0].image.metadata"),
    ({"type": "image_url", "image_url": {}}, InvalidImageInput, "messages[0].content[0].image_url.url"),
]


@pytest.mark.parametrize(("part", "kind", "field"), WRONG)
async def test_what_is_no_picture_is_refused_by_its_field(
    seeing: tuple[Engine, Seeing], part: object, kind: type[EngineError], field: str
) -> None:
    engine, core = seeing
    with pytest.raises(kind) as raised:
        await engine.chat(asked(part))
    assert isinstance(raised.value, InvalidRequest)
    assert (raised.value.field or "").endswith(field)
    assert "secret" not in str(raised.value.to_object())
    assert core.backend.requests == []


async def test_other_parts_beside_pictures_are_refused(seeing: tuple[Engine, Seeing]) -> None:
    engine, _ = seeing
    with pytest.raises(UnsupportedParameter, match=r"content\[1\].*input_audio"):
        await engine.chat(asked({"type": "image", "image": png()}, {"type": "input_audio"}))


async def test_a_vision_generator_tells_of_the_pictures_first(seeing: tuple[Engine, Seeing]) -> None:
    engine, core = seeing
    params: dict[str, Any] = {
        "model": "m",
        "prompt": "What is it?",
        "image": [png(), picture(shade=3)],
        "visionConfig": {},
    }
    chunks = [chunk async for chunk in engine.createVisionGenerator(params)]
    first, token, last = chunks
    assert isinstance(first, ImageProcessedChunk)
    assert [(each.width, each.height) for each in first.image_metadata] == [(64, 48)] * 2
    assert isinstance(token, TokenChunk)
    assert isinstance(last, MetadataChunk)
    assert isinstance(last.stats, VisionGenerationStats)
    assert last.to_object()["stats"]["imageProcessingTime"] == first.image_processing_time  # pyright: ignore[reportIndexIssue]  an object
    assert core.prompt.messages == (
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]},
    )
    sampling = core.backend.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (100, 0.0, 1.0)


async def test_a_vision_generator_ends_with_what_went_wrong(seeing: tuple[Engine, Seeing]) -> None:
    engine, _ = seeing
    params = {"model": "m", "prompt": "What is it?", "image": b"%PDF"}
    chunks = [chunk async for chunk in engine.create_vision_generator(params)]
    assert [type(chunk) for chunk in chunks] == [ErrorChunk]


async def test_a_vision_generator_takes_templates_and_conversations(seeing: tuple[Engine, Seeing]) -> None:
    engine, core = seeing
    template = {"template": "What is {{it}}?", "variables": {"it": "this"}}
    async for _ in engine.create_vision_generator({"model": "m", "prompt": template, "image": png()}):
        pass
    assert core.prompt.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    async for _ in engine.create_vision_generator(asked({"type": "image", "image": png()})):
        pass
    assert core.prompt.messages[0]["content"] == [{"type": "image"}]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"prompt": "x"}, "image"),
        ({"prompt": "x", "image": []}, "image"),
        ({"prompt": {"tokens": [1]}, "image": b"x"}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}], "image": b"x"}, "image"),
        ({"prompt": "x", "image": b"x", "visionConfig": {"imageResolution": 336}}, "vision_config.imageResolution"),
        ({"prompt": "x", "image": b"x", "vision_config": {"num_tiles": 4}}, "vision_config.num_tiles"),
        ({"prompt": "x", "image": b"x", "visionConfig": {"colour": 4}}, "colour"),
    ],
)
async def test_what_a_vision_generator_cannot_do_is_refused(
    seeing: tuple[Engine, Seeing], params: dict[str, Any], field: str
) -> None:
    engine, _ = seeing
    with pytest.raises(InvalidRequest) as raised:
        await anext(engine.create_vision_generator({"model": "m", **params}))
    assert field.lower().replace("_", "") in str(raised.value.to_object()).lower().replace("_", "")


def test_parsed_output_is_the_default_of_vision() -> None:
    asked = VisionGeneratorParams(model="m", prompt="x", image=b"x")
    assert asked.is_parsed
    assert not VisionGeneratorParams(model="m", prompt="x", image=b"x", parse_output=False).is_parsed


@pytest.mark.parametrize("option", ["preprocessing", "config"])
async def test_options_of_loading_that_are_the_processors_are_refused(engine: Engine, option: str) -> None:
    with pytest.raises(UnsupportedParameter, match=option):
        await engine.load_vision_model({"model": "tiny", option: {"size": 224}})


async def test_a_text_model_is_no_vision_model_and_takes_no_pictures(engine: Engine) -> None:
    with pytest.raises(ModelLoadError, match="no vision model"):
        await engine.loadVisionModel("tiny")
    assert engine.get_model_info("tiny") is not None  # it was there before
    with pytest.raises(UnsupportedParameter, match="takes no pictures"):
        await engine.chat({**asked({"type": "image", "image": b"nothing is looked at"}), "model": "tiny"})


def test_a_handle_of_a_vision_model_says_what_it_takes(tiny_model: Path) -> None:
    from mlx_serving.config.schema import Config
    from mlx_serving.facade.shapes import ModelDescriptor, ModelHandle
    from mlx_serving.wire.methods import LoadModelResult

    class Facts:
        model_type = "qwen2_vl"

    handle = ModelHandle(ModelDescriptor("m", "local", "vision", "mlx-vlm"), "ready", 4096)
    facts: Any = Facts()
    assert LoadModelResult.__struct_fields__.index("model_type") >= 0
    seen = VisionModelHandle.of_vision(handle, facts, Config())
    told = seen.to_object()
    assert (told["imageEncoder"], told["maxImageSize"]) == ("qwen2_vl", 2048)
    assert seen.metadata["max_images"] == 16


async def test_the_synchronous_engine_takes_pictures(tiny_model: Path) -> None:
    def refused() -> EngineError:
        with SyncEngine({"models": {"served": [{"model": str(tiny_model), "name": "tiny"}]}}) as engine:
            engine.load_model("tiny")
            with pytest.raises(EngineError) as raised:
                engine.chat([{"role": "user", "content": [{"type": "image", "image": picture()}]}], model="tiny")
            return raised.value

    assert isinstance(await asyncio.to_thread(refused), UnsupportedParameter)
