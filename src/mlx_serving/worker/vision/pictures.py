"""Prompts with images in them, as the tokenizer thread prepares them: without any arrays of the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlx_serving.core.schedule.encodings import ImageSpan

_NAMED = 1 << 31  # above every token id


Run: TypeAlias = tuple[int, int]
"""Tokens [start, end) of something."""

Inputs: TypeAlias = Mapping[str, NDArray[np.generic]]
"""An image's pixels and what else an encoder wants of it, by name."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as its model takes it: `token_ids` are what the model is given for it, some of which are no tokens;
    `inputs` gives what its encoder wants, which is large and made again where it was not kept. It stands at `start`.
    `shown` are the runs of its tokens that stand for pixels, where the processor tells."""

    digest: str
    token_ids: tuple[int, ...]
    inputs: Callable[[], Inputs]
    start: int
    shown: tuple[Run, ...] = ()

    @property
    def span(self) -> ImageSpan:
        return ImageSpan(self.start, self.start + len(self.token_ids))


@dataclass(frozen=True, slots=True)
class Prepared:
    """`token_ids` are all in the vocabulary: for images they have something that stands for nothing. Where `pictures`
    stand, `fed` has what the model is given instead."""

    token_ids: Sequence[int]
    pictures: tuple[Picture, ...] = ()

    @property
    def fed(self) -> Sequence[int]:
        return self._with([picture.token_ids for picture in self.pictures])

    @property
    def names(self) -> Sequence[int]:
        """What names the beginnings of the prompt: images by their digests, so that only prompts with the same image at
        the same place have a name in common. Each is below 2**32."""
        return self._with([_names(picture.digest, len(picture.token_ids)) for picture in self.pictures])

    def _with(self, replaced: Sequence[Sequence[int]]) -> Sequence[int]:
        if not replaced:
            return self.token_ids
        ids = list(self.token_ids)
        for picture, instead in zip(self.pictures, replaced, strict=True):
            ids[picture.start : picture.start + len(instead)] = instead
        return ids


def runs_of(is_one: NDArray[np.bool_]) -> tuple[Run, ...]:
    """Where those that are one, [tokens], stand beside each other."""
    edges: list[int] = np.flatnonzero(np.diff(is_one, prepend=False, append=False)).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _names(digest: str, count: int) -> list[int]:
    drawn = hashlib.shake_256(digest.encode()).digest(4 * count)
    return [_NAMED | int.from_bytes(drawn[4 * index : 4 * index + 4], "little") for index in range(count)]
