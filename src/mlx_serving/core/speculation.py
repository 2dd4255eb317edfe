"""How the drafting of a sequence is told of when it has ended."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["ngram", "draft", "unsupported", "structured", "logprobs", "draft_lost"]
"""How tokens were drafted, or why none were: `unsupported` by the caches of the model; the request asks for a
`structured` answer or for `logprobs`; the draft model was lost and nothing else drafted before or after."""
