"""A vision-language model on the device: as any other, but for prompts that have images in them.

What an encoder made of an image stands where its tokens stand in the prompt; a piece of such a prompt is computed
alone, from embeddings. When the prompt is complete, its row decodes with all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.speculation.policy import Drafting
from mlx_serving.wire.methods import ModelCapabilities
from mlx_serving.worker.job import Job
from mlx_serving.worker.model_runner import ModelRunner
from mlx_serving.worker.prompts import Prompt
from mlx_serving.worker.vision.architecture import VisionText
from mlx_serving.worker.vision.features import FeatureCache, Features
from mlx_serving.worker.vision.pictures import Prepared


class VisionRunner(ModelRunner):
    def __init__(
        self,
        model: VisionText,
        capabilities: ModelCapabilities,
        padding_tokens: float,
        kv: KvForm | None,
        features: FeatureCache,
    ) -> None:
        super().__init__(model, capabilities, padding_tokens, kv)
        self._sight = model
        self._features = features
        self._pictured: dict[str, Prepared] = {}
        self._shifts: dict[str, int] = {}
        self._place = model.place

    def open(self, job: Job) -> Drafting | None:
        if job.pictures:
            self._pictured[job.stream_id] = job.prepared
        return super().open(job)

    def encode(self, stream_id: str, index: int) -> None:
        pictured = self._pictured.get(stream_id)
        if pictured is not None:
            self._made(stream_id, pictured, index)

    def evict(self, stream_id: str) -> None:
        super().evict(stream_id)
        if stream_id in self._pictured:
            self._features.release(stream_id)

    def remove(self, stream_id: str) -> None:
        super().remove(stream_id)
        self._pictured.pop(stream_id, None)
        self._shifts.pop(stream_id, None)

    def token_ids(self, stream_id: str) -> list[int]:
        pictured = self._pictured.get(stream_id)
        if pictured is None:
            return super().token_ids(stream_id)
        return [*pictured.names, *self._rows[stream_id].drawn]

    def _prompt(self, stream_id: str) -> Prompt:
        pictured = self._pictured.get(stream_id)
        if pictured is None:
            return super()._prompt(stream_id)
        features = partial(self._features_of, stream_id, pictured)
        prompt = PicturedPrompt(self._sight, pictured, features, self._rows[stream_id].drawn, self._kv)
        self._shifts[stream_id] = prompt.shift
        return prompt

    def _join(self, stream_id: str, prompt: Prompt) -> None:
        super()._join(stream_id, prompt)
        if stream_id in self._pictured:
            self._features.release(stream_id)

    def _shift(self, stream_id: str) -> int:
        return self._shifts.get(stream_id, 0)

    def _features_of(self, stream_id: str, pictured: Prepared, index: int) -> Features:
        """What the encoder makes of an image, or has made."""
        kept = self._features.get(stream_id, index)
        return self._made(stream_id, pictured, index) if kept is None else kept

    def _made(self, stream_id: str, pictured: Prepared, index: int) -> Features:
        features = self._sight.encode(pictured.pictures[index])
        cast(Any, mx).eval(features.arrays)
        self._features.put(stream_id, index, features)
        return features


class _Piece(NamedTuple):
    """Tokens [start, end) of a chunk are those of an image from its token `skipped` on."""

    start: int
    end: int
    skipped: int
    features: Features

    @property
    def embeddings(self) -> mx.array:
        return self._cut(self.features.embeddings)

    def added(self, layer: int) -> mx.array:
        return self._cut(self.features.deep[layer])

    def _cut(self, of_tokens: mx.array) -> mx.array:
        return of_tokens[self.skipped : self.skipped + self.end - self.start]


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of one prompt, by their places among them."""

    spans: Sequence[ImageSpan]
    features: Callable[[int], Features]

    def within(self, start: int, end: int) -> list[_Piece]:
        """What of them is in the chunk [start, end) of the prompt."""
        found: list[_Piece] = []
        for index, span in enumerate(self.spans):
            first, last = max(start, span.start), min(end, span.end)
            if first < last:
                found.append(_Piece(first - start, last - start, first - span.start, self.features(index)))
        return found


class PicturedPrompt(Prompt):
    """What `token_ids` name is computed, images included. `features` gives what the encoder makes of an image, by its
    place among them; `drawn` are tokens of the answer."""

    is_alone = True

    def __init__(
        self,
        model: VisionText,
        pictured: Prepared,
        features: Callable[[int], Features],
        drawn: Sequence[int] = (),
        kv: KvForm | None = None,
    ) -> None:
        super().__init__(model, [*pictured.names, *drawn], kv)
        self._sight = model
        self._fed = [*pictured.fed, *drawn]
        self._positions = positions = model.positions(pictured)
        self._images = _Images([picture.span for picture in pictured.pictures], features)
        self.shift = 0 if positions is None else int(positions.max()) + 1 - len(pictured.token_ids)
        """By how much the positions of the answer are beyond their numbers."""

    def _compute(self, model: nn.Module, end: int) -> None:
        fed = self._fed[self.done : end]
        pieces = self._images.within(self.done, end)
        told = _embedded(self._sight, fed, pieces) if pieces else {}
        if self._positions is not None:
            told["position_ids"] = _places(self._positions, self.done, end)
        self._sight(mx.array([list(fed)], dtype=mx.int32), self.caches, **told)


def _places(positions: NDArray[np.int32], start: int, end: int) -> mx.array:
    """[3, 1, tokens]: where the tokens [start, end) are. Behind the prompt they go on one by one."""
    known = positions.shape[1]
    first = int(positions.max()) + 1
    behind = np.arange(first + max(0, start - known), first + max(0, end - known), dtype=np.int32)
    return mx.array(np.concatenate([positions[:, start:end], np.tile(behind, (3, 1))], axis=1))[:, None]


def _embedded(sight: VisionText, fed: Sequence[int], pieces: Sequence[_Piece]) -> dict[str, Any]:
    """What the language model is told of a chunk with images in it."""
    is_image = np.zeros(len(fed), dtype=bool)
    for piece in pieces:
        is_image[piece.start : piece.end] = True
    text = sight.embed([0 if image else token for token, image in zip(fed, is_image, strict=True)])[0]
    rows: list[mx.array] = []
    done = 0
    for piece in pieces:
        rows += [text[done : piece.start], piece.embeddings.astype(text.dtype)]
        done = piece.end
    told: dict[str, Any] = {"inputs_embeds": mx.concatenate([*rows, text[done:]])[None]}
    depth = len(pieces[0].features.deep)
    if depth:
        told["visual_pos_masks"] = mx.array(is_image)[None]
        told["deepstack_visual_embeds"] = [
            mx.concatenate([piece.added(layer) for piece in pieces]) for layer in range(depth)
        ]
    return told
