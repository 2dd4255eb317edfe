"""A model's own processor: what it makes of one image, and what its chat template puts where an image stands.

Without arrays of the device: on the tokenizer thread, but for what was made too long ago to be kept.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image as PillowImage

from mlx_serving.core.images.image import Image
from mlx_serving.core.pinned_lru import PinnedLru
from mlx_serving.errors import InvalidRequest
from mlx_serving.worker.vision.pictures import Inputs, Run, runs_of

_KEPT_BYTES = 128 << 20
_LOW_PIXELS = 512 * 512
_LOW_PART = 4
# Tokens that are a matter of the processor and its template alone: the parts of their names in config.json.
_MEDIA = ("image", "video", "vision", "audio", "boi", "eoi")
# Where an image is not one token but a tag with its number.
_TAGS = {"phi3_v": ("<|image_{}|>", r"<\|image_\d+\|>")}
# Whatever they are told, mlx-vlm's processors for these have tokenizers run code that comes with them.
_TRUSTING = frozenset({"inkling", "moondream2"})
_TOLD_APART = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


@dataclass(frozen=True, slots=True)
class Shape:
    """An image as token ids. Those in the runs of `shown` stand for pixels, if the processor tells. It may want white
    space around them: `before` and `after` become one text with what stands there, and are tokenized with it."""

    token_ids: tuple[int, ...]
    before: str
    after: str
    shown: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Processed:
    """An image as token ids and as what its encoder wants."""

    shape: Shape
    inputs: Inputs

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.inputs.values())


class Processor:
    """Keeps what it made last, as far as `_KEPT_BYTES` go: who waits has pixels many times the size of their files.

    Raises what mlx-vlm and transformers raise for a directory whose processor cannot be made."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        import mlx_vlm.utils as library
        from transformers import AutoProcessor

        kind = cast(Any, library).get_model_type(dict(config))
        if kind in _TRUSTING:
            raise ValueError(
                f"mlx-vlm's processor for {kind} runs code that comes with tokenizers; that is not done here"
            )
        # Importing the architecture is what makes its processor known.
        cast(Any, library).get_model_and_args({name: value for name, value in config.items() if name != "model_file"})
        # Said outright: mlx-vlm would allow it.
        self._processor: Any = cast(Any, AutoProcessor).from_pretrained(str(directory), trust_remote_code=False)
        self._tokenizer: Any = self._processor.tokenizer
        self._tag, pattern = _TAGS.get(str(config.get("model_type")), (None, None))
        self.tags = None if pattern is None else re.compile(pattern)
        """What stands for an image where that is no token."""
        self.image_tokens = list(self._image_tokens(config))
        """The texts that a chat template may put where an image stands, the likeliest first."""
        media = {*self._media_tokens(config), *self.image_tokens}
        patterns = [re.escape(token) for token in sorted(media, key=len, reverse=True)]
        self.media = re.compile("|".join([*([pattern] if pattern else []), *patterns]) or r"(?!)")
        """What stands for an image, a video or a sound, or a part of one."""
        self._lead = list(self._tokenizer("")["input_ids"])
        self._lock = threading.Lock()
        self._kept: dict[str, Processed] = {}
        self._index: PinnedLru[str] = PinnedLru(_KEPT_BYTES)

    @property
    def chat_template(self) -> str | None:
        template = getattr(self._processor, "chat_template", None) or getattr(self._tokenizer, "chat_template", None)
        return template if isinstance(template, str) else None

    def slot(self, number: int, token: str) -> str:
        """What the processor wants to find where the image with this number (from 1) stands, in place of `token`."""
        return token if self._tag is None else self._tag.format(number)

    def process(self, image: Image, token: str) -> Processed:
        """What a model is given for an image; for any thread. Raises `InvalidRequest` for one that the processor
        refuses."""
        with self._lock:
            kept = self._kept.get(image.digest)
            if kept is not None:
                self._index.use(image.digest)
                return kept
            made = self._process(image, token)
            self._kept[image.digest] = made
            for digest in self._index.add(image.digest, made.nbytes):
                del self._kept[digest]
            return made

    def _process(self, image: Image, token: str) -> Processed:
        try:
            with PillowImage.open(io.BytesIO(image.data)) as opened:
                picture = opened.convert("RGB")
            made = self._processor(images=[picture], text=[self.slot(1, token)], **self._bounds(image))
        except Exception as error:
            raise InvalidRequest(
                f"The model's processor refused an image of {image.width} by {image.height} pixels: {error}",
                field="images",
            ) from error
        ids: list[int] = np.asarray(made["input_ids"]).reshape(-1).tolist()
        if self._lead and ids[: len(self._lead)] == self._lead:
            ids = ids[len(self._lead) :]
        arrays = {name: np.asarray(made[name]) for name in made if name not in _TOLD_APART and made[name] is not None}
        return Processed(self._shape(ids, made.get("mm_token_type_ids")), arrays)

    def _shape(self, ids: Sequence[int], kinds: object) -> Shape:
        before, after = self._space(ids), self._space(ids[:0:-1])[::-1]
        core = slice(len(before), len(ids) - len(after))
        shown = () if kinds is None else runs_of(np.asarray(kinds).reshape(-1)[-len(ids) :][core] != 0)
        return Shape(tuple(ids[core]), self._text(before), self._text(after), shown)

    def _space(self, ids: Sequence[int]) -> list[int]:
        """The first of these tokens, as far as they are white space."""
        return list(takewhile(lambda one: 0 <= one < len(self._tokenizer) and self._text([one]).isspace(), ids))

    def _text(self, ids: Sequence[int]) -> str:
        return cast(str, self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""

    def _bounds(self, image: Image) -> dict[str, int]:
        """`low` is a quarter of the pixels that the processor allows, but no more than 512 x 512."""
        of_images: Any = getattr(self._processor, "image_processor", None)
        most, least = getattr(of_images, "max_pixels", None), getattr(of_images, "min_pixels", None)
        if image.detail != "low" or not isinstance(most, int) or not isinstance(least, int):
            return {}
        return {"max_pixels": max(least, min(_LOW_PIXELS, most // _LOW_PART))}

    def _image_tokens(self, config: Mapping[str, Any]) -> Iterator[str]:
        if self._tag is not None:
            yield self._tag.format(1)
        own = (
            getattr(one, name, None)
            for one in (self._processor, self._tokenizer)
            for name in ("boi_token", "image_token")
        )
        named = (self._text_of(config.get(name)) for name in ("image_token_id", "image_token_index"))
        yield from dict.fromkeys(str(token) for token in (*own, *named) if token)

    def _media_tokens(self, config: Mapping[str, Any]) -> Iterable[str]:
        for name, value in config.items():
            if name.endswith(("_token_id", "_token_index")) and any(part in name for part in _MEDIA):
                text = self._text_of(value)
                if text:
                    yield text

    def _text_of(self, token_id: object) -> str | None:
        if not isinstance(token_id, int) or token_id < 0 or token_id >= len(self._tokenizer):
            return None
        return cast("str | None", self._tokenizer.convert_ids_to_tokens(token_id))
