"""A vision-language model on the device: as any other, but for prompts that have images in them.

What an encoder made of an image stands where its tokens stand in the prompt; a piece of such a prompt is computed
alone, from embeddings. When the prompt is complete, its row decodes with all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from mlx_serving.worker.vision.pictures import Picture, Prepared, Run


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

    def spans(self, job: Job) -> tuple[ImageSpan, ...]:
        whole = self._sight.attention.in_one_piece
        return tuple(replace(picture.span, whole=whole) for picture in job.pictures)

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
    shown: Sequence[Run]

    def cut(self, of_tokens: mx.array) -> mx.array:
        """Of what the image has for each of its tokens, what is in the chunk."""
        return of_tokens[self.skipped : self.skipped + self.end - self.start]

    @property
    def runs(self) -> list[Run]:
        """The tokens of the chunk that stand for pixels."""
        moved = self.start - self.skipped
        found = [(max(self.start, start + moved), min(self.end, end + moved)) for start, end in self.shown]
        return [(start, end) for start, end in found if start < end]


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of one prompt, by their places among them."""

    pictures: Sequence[Picture]
    features: Callable[[int], Features]

    def within(self, start: int, end: int) -> list[_Piece]:
        """What of them is in the chunk [start, end) of the prompt."""
        found: list[_Piece] = []
        for index, picture in enumerate(self.pictures):
            span = picture.span
            first, last = max(start, span.start), min(end, span.end)
            if first < last:
                features = self.features(index)
                found.append(_Piece(first - start, last - start, first - span.start, features, picture.shown))
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
        self._images = _Images(pictured.pictures, features)
        self.shift = 0 if positions is None else int(positions.max()) + 1 - len(pictured.token_ids)
        """By how much the positions of the answer are beyond their numbers."""

    def _compute(self, model: nn.Module, end: int) -> None:
        fed = self._fed[self.done : end]
        pieces = self._images.within(self.done, end)
        told = _embedded(self._sight, fed, pieces) if pieces else {}
        if self._positions is not None:
            told["position_ids"] = _places(self._positions, self.done, end)
        runs = [run for piece in pieces for run in piece.runs]
        caches = self._sight.attention.over(self.caches, runs, len(fed))
        self._sight(mx.array([list(fed)], dtype=mx.int32), caches, **told)


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
    text = sight.embed([0 if image else token for token, image in zip(fed, is_image, strict=True)])
    told: dict[str, Any] = {"inputs_embeds": _woven(text.embeddings, pieces, lambda features: features.embeddings)}
    for name, of_text in text.beside.items():
        told[name] = _woven(of_text, pieces, lambda features, name=name: features.beside[name])
    depth = len(pieces[0].features.deep)
    if depth:
        told["visual_pos_masks"] = mx.array(is_image)[None]
        told["deepstack_visual_embeds"] = [
            mx.concatenate([piece.cut(piece.features.deep[layer]) for piece in pieces]) for layer in range(depth)
        ]
    return told


def _woven(text: mx.array, pieces: Sequence[_Piece], of_image: Callable[[Features], mx.array]) -> mx.array:
    """[1, tokens, …]: what text has for each token of a chunk, with what images have in its place where they stand."""
    rows: list[mx.array] = []
    done = 0
    for piece in pieces:
        rows += [text[done : piece.start], piece.cut(of_image(piece.features)).astype(text.dtype)]
        done = piece.end
    return mx.concatenate([*rows, text[done:]])[None]
