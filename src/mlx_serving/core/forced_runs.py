"""How many tokens that are known beforehand a decode step takes at once.

Where a grammar leaves one way to go on, the tokens of that way need not be asked of the model: a row can be fed all of
them in one forward pass. But the other rows of the batch are padded to it, and computing padding costs, too. A row's
token is worth its part of the pass that it saves; a column of padding costs a token for each row. What is saved comes
to rows that follow grammars, sooner or later; a row that follows none only waits longer for its token.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_RUN = 64
"""Tokens that a row takes in one step."""

PATIENCE = 0.02
"""By what part of a step it may take longer where a row follows no grammar."""


def width(runs: Sequence[int], pass_tokens: float, *, bystanders: bool = False) -> int:
    """How many tokens to feed the rows of a batch at most, for which so many are known each (one at least): as many as
    save most. A pass costs `pass_tokens` besides its tokens. `bystanders`: some of the rows follow no grammar."""
    rows = len(runs)
    worth = pass_tokens / rows + 1
    most = 1 + int(PATIENCE * (pass_tokens + rows) / rows) if bystanders else MAX_RUN

    def saved(columns: int) -> float:
        return sum(min(run, columns) - 1 for run in runs) * worth - (columns - 1) * len(runs)

    return max(sorted({1, *(min(run, most) for run in runs)}), key=saved)
