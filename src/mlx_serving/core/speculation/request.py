"""What a request says of tokens that are drafted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SpeculationMethod = Literal["auto", "off", "ngram", "draft"]

MAX_DRAFT_TOKENS = 32
"""Most tokens that a request may have drafted at a time."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """Whether tokens are drafted, so that the model checks several in one pass. No answer depends on it: what is kept
    of a draft is what the model itself would have drawn.

    `ngram` drafts what followed the last time that the text ended like this, `draft` has the model `draft_model`, the
    served name of another one, go ahead; `auto` is `draft` where a `draft_model` is named, else what is configured.
    At most `num_draft_tokens` are drafted at a time, or as many as have proved worth it. Where a `draft_model` that is
    `optional` cannot be had, it is done without. `prediction` is what the answer is thought to be: `ngram` looks it up
    as if it had been said before, and `auto` is `ngram` with it.
    """

    method: SpeculationMethod = "auto"
    draft_model: str | None = None
    num_draft_tokens: int | None = None
    optional: bool = False
    prediction: str | None = None

    def if_there(self) -> Speculation:
        """The same, but for a draft model that cannot be had."""
        return self if self.draft_model is None else replace(self, optional=True)

    def without_model(self) -> Speculation:
        """The same, where its draft model cannot be had."""
        return replace(self, method="auto", draft_model=None)

    @property
    def problem(self) -> tuple[str, str] | None:
        """What contradicts itself: the name of a field, and what is to be said of it."""
        if self.draft_model is not None and self.method in ("off", "ngram"):
            return "draft_model", f"is only allowed when speculation is auto or draft, got {self.method}"
        if self.prediction is not None and self.method in ("off", "draft"):
            return "prediction", f"is only allowed when speculation is auto or ngram, got {self.method}"
        if self.prediction is not None and self.draft_model is not None:
            return "prediction", "is not allowed with a draft_model: one of them drafts"
        return None


AS_CONFIGURED = Speculation()
