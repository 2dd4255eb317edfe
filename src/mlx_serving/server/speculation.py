"""What a request of OpenAI's API may say of drafting: mlx-lm's words, and who drafts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from mlx_serving.core.speculation.request import MAX_DRAFT_TOKENS, Speculation
from mlx_serving.server.issues import Issue
from mlx_serving.server.request_fields import Body


class SpeculationFields(Body):
    speculation: Literal["auto", "off", "ngram", "draft"] | None = Field(
        default=None,
        description="Who drafts tokens that the model then checks, which changes how fast an answer comes and never "
        "what it is: the text so far, the draft model, or nobody.",
    )
    draft_model: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Name of a smaller model that GET /v1/models lists, with the same vocabulary.",
    )
    num_draft_tokens: int | None = Field(
        default=None, ge=1, le=MAX_DRAFT_TOKENS, description="Tokens to draft at a time at most."
    )

    def wanted(self) -> Speculation:
        return Speculation(self.speculation or "auto", self.draft_model, self.num_draft_tokens)

    def draft_problems(self) -> Iterator[Issue]:
        """What contradicts itself."""
        problem = self.wanted().problem
        if problem is not None:
            field, rule = problem
            yield Issue(field, f"{field} {rule}")
