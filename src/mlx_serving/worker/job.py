"""What is to be computed for one sequence, and on what terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_serving.core.generation import Priority
from mlx_serving.core.reasoning_budget import ThoughtBudget
from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.worker.grammar.matcher import Matcher
from mlx_serving.worker.sampling.row import NO_RULES, TokenRules
from mlx_serving.worker.speculation.drafter import NOT_WANTED, Wanted
from mlx_serving.worker.vision.pictures import Picture, Prepared


@dataclass(frozen=True, slots=True)
class Job:
    """The sequence as the device sees it: `token_ids` of its prompt, and of its answer those that were `drawn` before.
    `seed` decides its draws, `matcher`, which has seen what was drawn, what they may be. It has no more than
    `max_tokens`; `speculation` says whether they are drafted. `pictures` stand in its prompt."""

    stream_id: str
    token_ids: Sequence[int]
    sampling: ResolvedSampling
    seed: int
    rules: TokenRules = NO_RULES
    drawn: Sequence[int] = ()
    matcher: Matcher | None = None
    thought: ThoughtBudget | None = None
    max_tokens: int | None = None
    pictures: tuple[Picture, ...] = ()
    speculation: Wanted = NOT_WANTED

    @property
    def prepared(self) -> Prepared:
        return Prepared(self.token_ids, self.pictures)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a sequence is served. `max_tokens` counts what was drawn before; `deadline` is monotonic seconds,
    `caller` who takes turns with others. `fork_of` is the stream id of one with the same prompt, whose computation of
    it this one may share. Only who names the same `salt` can begin with what is kept of others. A chunk of the prompt
    ends at each of `stops`, counts of tokens behind which others may go on differently."""

    max_tokens: int
    priority: Priority = "normal"
    caller: str = ""
    deadline: float | None = None
    fork_of: str | None = None
    salt: str = ""
    stops: tuple[int, ...] = ()
