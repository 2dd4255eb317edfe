"""Whoever guesses how sequences go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.nn as nn

from mlx_serving.wire.methods import SpeculationMethod
from mlx_serving.worker.sampling.row import SamplingRow


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A loaded model that drafts for another one of the same vocabulary."""

    model_id: str
    model: nn.Module


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a sequence asks of speculation: `draft_model` is there where the method is `draft`. No more than
    `num_draft_tokens` are drafted at a time, or what the policy says. `expected` are the tokens that its answer is
    thought to be."""

    method: SpeculationMethod = "off"
    num_draft_tokens: int | None = None
    draft_model: DraftModel | None = None
    expected: Sequence[int] = ()


NOT_WANTED = Wanted()


@dataclass(frozen=True, slots=True)
class Wish:
    """Up to `most` tokens are wanted behind all that the row knows: its prompt and what it has drawn, every token of
    which was read."""

    stream_id: str
    row: SamplingRow
    most: int


class Drafter(Protocol):
    """Keeps what it needs of each sequence from one call to the next; a sequence may skip any number of calls."""

    def propose(self, wishes: Sequence[Wish]) -> list[list[int]]:
        """For each wish the tokens that are thought to come, or none. Wrong ones cost time, never a wrong answer."""
        ...

    def forget(self, stream_id: str) -> None:
        """The sequence is gone, or its memory is wanted. Unknown ids are ignored; it may come again."""
        ...

    @property
    def nbytes(self) -> int:
        """What it keeps on the device."""
        ...
