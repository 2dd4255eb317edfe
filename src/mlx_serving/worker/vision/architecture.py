"""mlx-vlm's models, called as mlx-lm's are: tokens and caches in, logits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache
from numpy.typing import NDArray

from mlx_serving.worker.kv_cache import RowLengths
from mlx_serving.worker.vision.attention import CAUSAL, Attention
from mlx_serving.worker.vision.features import Features
from mlx_serving.worker.vision.pictures import Picture, Prepared

# What an encoder may give besides embeddings: where the tokens are, which is computed for the whole prompt, what is
# added to deeper layers, what is taken beside each token, and a mask of the whole prompt, which some make and do not go
# by: the trial tells.
_UNDERSTOOD = {
    "inputs_embeds",
    "position_ids",
    "rope_deltas",
    "visual_pos_masks",
    "deepstack_visual_embeds",
    "per_layer_inputs",
    "attention_mask_4d",
}
_BESIDE = ("per_layer_inputs",)
_IMAGE_KIND = 1  # among what processors tell tokens apart by
_TOLERANCE = 1e-3


class UnknownFeatures(Exception):
    """What an encoder gives cannot be computed image by image here."""


class VisionText(nn.Module):
    """The language model of a vision-language model. Positions are always said, because mlx-vlm's models otherwise
    go by what the last call has left behind."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self._is_placed = hasattr(inner.language_model, "get_rope_index")
        # Called with token ids alone, this one reads them on the host, which would wait for the device.
        self._embeds_always = inner.language_model is inner
        self.attention: Attention = CAUSAL
        """How tokens of images see each other; the trial finds out."""

    def __call__(self, tokens: mx.array, cache: Sequence[Any], **told: Any) -> mx.array:
        """[rows, tokens] -> logits, [rows, tokens, vocabulary]. `told` is what the language model takes besides."""
        if self._is_placed and "position_ids" not in told:
            told["position_ids"] = _behind(cache, tokens.shape)
        if self._embeds_always and "inputs_embeds" not in told:
            told["inputs_embeds"] = self.inner.model.embed_tokens(tokens)
        return self.inner.language_model(tokens, cache=list(cache), **told).logits

    @property
    def layers(self) -> list[Any]:
        return self.inner.language_model.layers

    def make_cache(self) -> list[Any]:
        language = self.inner.language_model
        made = language.make_cache() if hasattr(language, "make_cache") else [KVCache() for _ in self.layers]
        return [_lm_cache(cache) for cache in made]

    def place(self, rows: RowLengths) -> Mapping[str, Any]:
        """What a step of a batch is to be told of where its rows are."""
        if not self._is_placed or not any(rows.shifts):
            return {}
        positions = mx.array([a + b for a, b in zip(rows.lengths, rows.shifts, strict=True)], dtype=mx.int32)
        return {"position_ids": _three((positions[:, None] + mx.arange(rows.width))[None])}

    def encode(self, picture: Picture) -> Features:
        """Run the encoder; nothing is computed yet. Raises whatever that does, `UnknownFeatures` for more than can be
        used here."""
        ids = mx.array([list(picture.token_ids)], dtype=mx.int32)
        made = self._embed(ids, _inputs([picture]))
        others = [name for name, value in made.items() if value is not None and name not in _UNDERSTOOD]
        if others:
            raise UnknownFeatures(f"its encoder also gives {', '.join(others)}")
        embeddings = made["inputs_embeds"][0]
        if embeddings.shape[0] != len(picture.token_ids):
            raise UnknownFeatures(f"{len(picture.token_ids)} tokens and {embeddings.shape[0]} features")
        beside = _beside(made)
        deep = made.get("deepstack_visual_embeds")
        if deep is None:
            return Features(embeddings, beside=beside)
        columns = np.flatnonzero(np.array(made["visual_pos_masks"][0]))
        if len(columns) != len(picture.token_ids):
            raise UnknownFeatures("some of its tokens are not seen by all layers")
        return Features(embeddings, tuple(deep), beside)

    def embed(self, token_ids: Sequence[int]) -> Features:
        """The same of text."""
        made = self._embed(mx.array([list(token_ids)], dtype=mx.int32), {})
        return Features(made["inputs_embeds"][0], beside=_beside(made))

    def positions(self, prompt: Prepared) -> NDArray[np.int32] | None:
        """Where each token of a prompt with images is, [3, tokens]; None where its place is its number."""
        if not self._is_placed:
            return None
        grids = _inputs(prompt.pictures)["image_grid_thw"]
        ids = mx.array([prompt.fed], dtype=mx.int32)
        places, _ = self.inner.language_model.get_rope_index(ids, image_grid_thw=grids)
        return np.array(places)[:, 0].astype(np.int32)

    def try_images(self, prompt: Prepared) -> Features:
        """Compare a prompt with one image, put together piece by piece, with what the architecture itself makes of it.
        Returns what was made of the image. Raises `UnknownFeatures`, or whatever the encoder raises, unless they are
        alike."""
        [picture] = prompt.pictures
        whole = self._embed(mx.array([prompt.fed], dtype=mx.int32), _inputs([picture]))
        features = self.encode(picture)
        start, end = picture.span.start, picture.span.end
        error = mx.max(mx.abs(whole["inputs_embeds"][0, start:end] - features.embeddings))
        around = [*prompt.token_ids[:start], *prompt.token_ids[end:]]
        of_text = mx.concatenate([whole["inputs_embeds"][0, :start], whole["inputs_embeds"][0, end:]])
        error = mx.maximum(error, mx.max(mx.abs(of_text - self.embed(around).embeddings)))
        if not bool((error <= _TOLERANCE * mx.max(mx.abs(whole["inputs_embeds"]))).item()):
            raise UnknownFeatures("what it makes of an image depends on what stands around it")
        places = self.positions(prompt)
        if places is not None and not np.array_equal(places, np.array(whole["position_ids"])[:, 0]):
            raise UnknownFeatures("where it puts the tokens of an image is not understood here")
        return features

    def compute_whole(self, prompt: Prepared) -> list[Any]:
        """The caches of a prompt with images that is computed in one pass, as mlx-vlm does it."""
        ids = mx.array([prompt.fed], dtype=mx.int32)
        inputs = _inputs(prompt.pictures)
        told: dict[str, Any] = {name: value for name, value in inputs.items() if name != "pixel_values"}
        told |= {name: value for name, value in self._embed(ids, inputs).items() if value is not None}
        if any(picture.shown for picture in prompt.pictures):
            told["mm_token_type_ids"] = _kinds(prompt)
        caches = self.make_cache()
        self.inner.language_model(ids, cache=caches, **told)
        return caches

    def _embed(self, ids: mx.array, inputs: Mapping[str, mx.array]) -> dict[str, Any]:
        rest = dict(inputs)
        pixels = rest.pop("pixel_values", None)
        if pixels is not None:
            rest["mask"] = mx.ones(ids.shape, dtype=mx.int32)
        return self.inner.get_input_embeddings(ids, pixels, **rest).to_dict()


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether mlx-vlm has the architecture that a config.json names."""
    import mlx_vlm.utils as library

    name: str | None = cast(Any, library).get_model_type(dict(config))
    return name is not None and find_spec(f"mlx_vlm.models.{name}") is not None


def open_model(directory: Path, config: Mapping[str, object]) -> tuple[nn.Module, dict[str, Any]]:
    """The model, of which no weight has been read, and its config. Raises whatever mlx-vlm raises."""
    import mlx_vlm.utils as library

    return VisionText(cast(Any, library).load_model(directory, lazy=True)), dict(config)


def _beside(made: Mapping[str, Any]) -> dict[str, mx.array]:
    return {name: made[name][0] for name in _BESIDE if made.get(name) is not None}


def _inputs(pictures: Sequence[Picture]) -> dict[str, mx.array]:
    """What encoders are given besides token ids, of several images one after the other where that can be."""
    given = [picture.inputs() for picture in pictures]
    return {name: mx.array(cast(Any, np.concatenate([one[name] for one in given]))) for name in given[0]}


def _lm_cache(cache: Any) -> Any:
    """The same in mlx-lm's class: mlx-vlm has classes of its own for what is the same."""
    match type(cache).__name__:
        case "KVCache":
            return KVCache()
        case "RotatingKVCache":
            return RotatingKVCache(cache.max_size, cache.keep)
        case _:
            return cache


def _kinds(prompt: Prepared) -> mx.array:
    """Which tokens stand for pixels, as processors tell it, [1, tokens]."""
    kinds = np.zeros((1, len(prompt.token_ids)), dtype=np.int32)
    for picture in prompt.pictures:
        for start, end in picture.shown:
            kinds[0, picture.start + start : picture.start + end] = _IMAGE_KIND
    return mx.array(kinds)


def _behind(caches: Sequence[Any], shape: Sequence[int]) -> mx.array:
    """The positions of tokens behind what caches hold, [3, rows, tokens]."""
    rows, width = shape
    offset = next((cache.offset for cache in caches if hasattr(cache, "offset")), 0)
    first = offset[:rows, None] if isinstance(offset, mx.array) and offset.ndim else offset
    return _three(mx.broadcast_to(first + mx.arange(width), (rows, width))[None])


def _three(positions: mx.array) -> mx.array:
    return mx.broadcast_to(positions, (3, *positions.shape[1:]))
