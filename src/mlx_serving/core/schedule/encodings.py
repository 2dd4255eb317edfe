"""What the scheduler asks of those who keep what encoders made of images, so that none is encoded twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where an image stands in a prompt: its tokens are [start, end). `whole`: they must be computed in one chunk,
    because they see each other; what is kept of them all may be used in part."""

    start: int
    end: int
    whole: bool = False

    @property
    def tokens(self) -> int:
        return self.end - self.start


class Encodings(Protocol):
    """Sequences are named by their ids, their images by their places among them."""

    def claim(self, id: str, index: int) -> bool:  # noqa: A002
        """Whether what was made of an image is kept. Then it stays until the prompt of the sequence is computed."""
        ...


class NoEncodings:
    """Nothing is kept."""

    def claim(self, id: str, index: int) -> bool:  # noqa: A002
        return False


NO_ENCODINGS = NoEncodings()
