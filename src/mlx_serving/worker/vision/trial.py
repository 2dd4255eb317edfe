"""Whether the images of an architecture can be computed one by one, and its prompts in pieces, found by trying it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache
from PIL import Image as PillowImage

from mlx_serving.core.generation import ChatPrompt
from mlx_serving.core.images.image import Image
from mlx_serving.worker.prompts import evaluate_caches
from mlx_serving.worker.tokenizing import PromptTokenizer
from mlx_serving.worker.vision.architecture import UnknownFeatures, VisionText
from mlx_serving.worker.vision.attention import ATTENTIONS
from mlx_serving.worker.vision.features import Features
from mlx_serving.worker.vision.pictures import Prepared
from mlx_serving.worker.vision.runner import PicturedPrompt

_SIDE = 64
_TEXT = "What is there to be seen, and what is beside it?"

# Of the spread of keys and values. Rounding in 16 bits stays far below; tokens that see others than they should are far
# above.
_TOLERANCE = 0.1


def trying(model: VisionText, tokenizer: PromptTokenizer) -> Generator[None, None, str | None]:
    """Find out how tokens of images see each other: so that a prompt computed in pieces leaves in the caches what the
    architecture itself leaves there, which computes it as a whole. After each pass others may have their turn.

    Returns why the model takes no images, None if it does: then `model.attention` is what was found.
    """
    messages = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _TEXT}]},)
    try:
        prompt = tokenizer.prepare(ChatPrompt(messages, images=(_image(),)))
        features = model.try_images(prompt)
        yield
        whole = model.compute_whole(prompt)
        evaluate_caches(whole)
        yield
        for model.attention in ATTENTIONS.values():
            if _leaves(model, prompt, features, whole):
                return None
            yield
        raise UnknownFeatures("its prompts in pieces are not the same as whole ones")
    except Exception as error:  # noqa: BLE001  whatever an architecture raises here, it says that it cannot
        return f"its images cannot be computed here: {error}"


def _leaves(model: VisionText, prompt: Prepared, features: Features, whole: Sequence[Any]) -> bool:
    """Whether a prompt in pieces leaves the same in the caches."""
    [picture] = prompt.pictures
    pieces = PicturedPrompt(model, prompt, lambda index: features)
    start, end, last = picture.span.start, picture.span.end, len(prompt.token_ids) - 1
    within = [] if model.attention.in_one_piece else [(start + end) // 2]
    cuts = sorted({0, start, *within, end, (end + last) // 2, last})
    for cut in cuts:
        pieces.advance(model, cut)
    return all(
        _alike(ours, theirs, cut)
        for ours, theirs in _held(pieces.caches, whole)
        for cut in (slice(*cut) for cut in pairwise(cuts))
    )


def _held(tried: Sequence[Any], whole: Sequence[Any]) -> Iterator[tuple[mx.array, mx.array]]:
    """Keys and values that both hold. Windows are passed over: between them there are layers that keep all tokens, and
    take what windows gave."""
    for ours, theirs in zip(tried, whole, strict=True):
        if type(ours) is KVCache:
            yield ours.keys, theirs.keys
            yield ours.values, theirs.values


def _alike(tried: mx.array, whole: mx.array, tokens: slice) -> bool:
    ours, theirs = (array[..., tokens, :].astype(mx.float32) for array in (tried, whole))
    error = mx.sqrt(mx.mean(mx.square(ours - theirs)))
    return bool((error <= _TOLERANCE * mx.std(theirs)).item())


def _image() -> Image:
    """A picture of a gradient."""
    across = np.linspace(0, 255, _SIDE, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(across[None], across[:, None], np.uint8(128)), axis=-1)
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return Image(file.getvalue(), hashlib.sha256(pixels.tobytes()).hexdigest(), _SIDE, _SIDE)
