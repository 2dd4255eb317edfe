"""Vision models, as the ancestor's programs ask for them: one text, and pictures before it.

Conversations with pictures in any turn go through `Engine.chat` and `Engine.create_generator` like all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias, cast

from pydantic import ConfigDict, Field, field_validator, model_validator

from mlx_serving.config.schema import Config
from mlx_serving.core.generation import ChatPrompt, Prompt, TextPrompt
from mlx_serving.core.images.image import Image
from mlx_serving.core.images.parts import Pictures
from mlx_serving.core.images.rules import FORMATS
from mlx_serving.errors import InvalidRequest
from mlx_serving.facade.model_options import LoadModelOptions
from mlx_serving.facade.option_base import Options, either, unsupported
from mlx_serving.facade.options import GeneratorParams, TokensPrompt
from mlx_serving.facade.pictures import source_of
from mlx_serving.facade.shapes import (
    ErrorChunk,
    GenerationStats,
    GeneratorChunk,
    MetadataChunk,
    ModelHandle,
    Shape,
    TokenChunk,
)
from mlx_serving.wire.methods import LoadModelResult


class VisionConfig(Options):
    """How a model sees is its processor's own. How large a picture it gets to see, the `detail` of a picture says."""

    image_resolution: Any = Field(default=None, validation_alias=either("image_resolution"))
    patch_size: Any = Field(default=None, validation_alias=either("patch_size"))
    enable_tiling: Any = Field(default=None, validation_alias=either("enable_tiling"))
    num_tiles: Any = Field(default=None, validation_alias=either("num_tiles"))

    @field_validator("*")
    @classmethod
    def _absent(cls, value: object) -> object:
        if value is not None:
            raise unsupported("is not supported")
        return value


class LoadVisionModelOptions(LoadModelOptions):
    """As any model's. How pictures are prepared is the model's own processor's: it cannot be said here."""

    preprocessing: Any = None
    config: Any = None

    @field_validator("preprocessing", "config")
    @classmethod
    def _own(cls, value: object) -> object:
        if value:
            raise unsupported("is not supported: the model's own processor prepares pictures")
        return value


class VisionGeneratorParams(GeneratorParams):
    """`image` is one picture, or a list of them, which come before the text: see `facade.pictures.source_of`. What is
    thought and called is told apart from what is said."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    image: Any = None
    vision_config: VisionConfig | None = Field(default=None, validation_alias=either("vision_config"))
    max_tokens: int | None = Field(default=100, validation_alias=either("max_tokens"))
    temperature: float | None = 0.0
    top_p: float | None = Field(default=1.0, validation_alias=either("top_p"))

    @model_validator(mode="after")
    def _pictures_and_text(self) -> VisionGeneratorParams:
        if self.messages is not None and self.image is not None:
            raise InvalidRequest("image is only allowed with a prompt: messages bring their own", field="image")
        if self.messages is None and not self._images():
            raise InvalidRequest("image is required", field="image")
        if isinstance(self.prompt, TokensPrompt):
            raise InvalidRequest("prompt must be text: pictures have no place among token ids", field="prompt")
        return self

    @property
    def is_parsed(self) -> bool:
        return self.parse_output is not False

    def to_prompt(self) -> Prompt:
        said = super().to_prompt()
        if not isinstance(said, TextPrompt):
            return said
        pictures, images = Pictures(), self._images()
        names = ["image"] if not isinstance(self.image, list) else [f"image[{place}]" for place in range(len(images))]
        sources = [source_of(image, name) for image, name in zip(images, names, strict=True)]
        message = {"role": "user", "content": pictures.content([*sources, said.text])}
        return ChatPrompt((message,), sources=pictures.sources)

    def _images(self) -> Sequence[object]:
        if self.image is None:
            return ()
        return cast("list[object]", self.image) if isinstance(self.image, list) else (self.image,)


@dataclass(frozen=True, slots=True)
class VisionModelHandle(ModelHandle):
    """A vision model that is in memory. `max_image_size` is the longer side that larger pictures are scaled down to, in
    pixels; `image_encoder` the model's own name for its kind."""

    image_encoder: str | None = None
    max_image_size: int | None = None

    @classmethod
    def of_vision(cls, handle: ModelHandle, facts: LoadModelResult, config: Config) -> VisionModelHandle:
        pictures = {
            "supported_formats": list(FORMATS),
            "max_images": config.images.max_images,
            "max_batch_size": config.scheduler.max_num_seqs,
        }
        return cls(
            descriptor=handle.descriptor,
            state=handle.state,
            context_length=handle.context_length,
            metadata={**handle.metadata, **pictures},
            draft=handle.draft,
            image_encoder=facts.model_type,
            max_image_size=config.images.max_side,
        )


@dataclass(frozen=True, slots=True)
class ImageMetadata(Shape):
    """A picture as the model got it: `width` and `height` in pixels, `size` of the file in bytes. Pictures of one
    `digest` are the same to it."""

    width: int
    height: int
    size: int
    detail: str
    digest: str

    @classmethod
    def of(cls, image: Image) -> ImageMetadata:
        return cls(image.width, image.height, len(image.data), image.detail, image.digest)


@dataclass(frozen=True, slots=True)
class ImageProcessedChunk(Shape):
    """The first chunk: all pictures are read and checked, in `image_processing_time` seconds."""

    type: Literal["image_processed"] = field(default="image_processed", init=False)
    image_metadata: list[ImageMetadata]
    image_processing_time: float


@dataclass(frozen=True, slots=True)
class VisionGenerationStats(GenerationStats):
    """`image_processing_time` is what reading and checking the pictures took, in seconds."""

    image_processing_time: float | None = None


VisionGeneratorChunk: TypeAlias = TokenChunk | MetadataChunk | ErrorChunk | ImageProcessedChunk


def with_vision_stats(chunk: GeneratorChunk, image_processing_time: float) -> GeneratorChunk:
    """The chunk as a vision generator tells it."""
    if not isinstance(chunk, MetadataChunk):
        return chunk
    stats = VisionGenerationStats(**asdict(chunk.stats), image_processing_time=image_processing_time)
    return replace(chunk, stats=stats)
