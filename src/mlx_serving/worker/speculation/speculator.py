"""Who of a batch drafts, how much, and what came of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from mlx_serving.core.memory_share import tells_of_memory
from mlx_serving.core.speculation.pass_cost import DraftCost, PassCost
from mlx_serving.core.speculation.policy import DEFAULT_DRAFT_TOKENS, Drafting, Hope, SpeculationCounts, draft_width
from mlx_serving.worker.prompts import PASS_TOKENS
from mlx_serving.worker.sampling.row import SamplingRow
from mlx_serving.worker.speculation.drafter import Drafter, DraftModel, Wanted, Wish
from mlx_serving.worker.speculation.model_drafter import can_draft, weight_bytes
from mlx_serving.worker.speculation.verification import Draws, is_checkable

Rows: TypeAlias = Sequence[tuple[str, SamplingRow]]
"""Stream ids and rows of a batch."""

_AHEAD = 2
"""Tokens of an answer that must be left behind a draft: the one that checking it gives anyway, and the last one, which
the scheduler is to see come."""


class Speculator:
    """Of one model, which is `able` to check drafts or not, and whose weights take `weight_bytes`. `make_drafter` has a
    draft model draft for its sequences. `cost` is that of a pass of the model."""

    def __init__(
        self,
        make_drafter: Callable[[DraftModel], Drafter],
        *,
        able: bool,
        weight_bytes: int,
        cost: PassCost | None = None,
    ) -> None:
        self._make_drafter = make_drafter
        self.able = able
        self._weight_bytes = weight_bytes
        self.cost = cost or PassCost(PASS_TOKENS)
        self._drafters: dict[str, Drafter] = {}  # by the id of their model
        self._draft_costs: dict[str, DraftCost] = {}  # the same
        self._drafted_by: dict[str, str] = {}  # stream id -> draft model
        self._tried: list[Drafting] = []  # who was likely to have a draft when it was decided to read
        self.counts = SpeculationCounts()

    def open(self, stream_id: str, row: SamplingRow, wanted: Wanted) -> None:
        """A sequence comes, and says what it wants."""
        if wanted.method == "off":
            return
        model = wanted.draft_model
        most = wanted.num_draft_tokens or DEFAULT_DRAFT_TOKENS
        if not self.able or (model is not None and not can_draft(model.model)):
            row.drafting = Drafting("unsupported", most, is_possible=False)
        elif row.matcher is not None:
            row.drafting = Drafting("structured", most, is_possible=False)
        elif model is None:
            row.drafting = Drafting.by_ngrams(most, wanted.expected)
        else:
            row.drafting = Drafting("draft", most)
            self._drafted_by[stream_id] = model.model_id
            if model.model_id not in self._drafters:
                self._drafters[model.model_id] = self._make_drafter(model)
                self._draft_costs[model.model_id] = DraftCost(weight_bytes(model.model) / self._weight_bytes)

    def rest(self, stream_id: str) -> None:
        """What is kept of it on the device is wanted for others. Unknown ids are ignored."""
        model = self._drafted_by.get(stream_id)
        if model in self._drafters:
            self._drafters[model].forget(stream_id)

    def close(self, stream_id: str) -> None:
        """It is gone. Unknown ids are ignored."""
        self.rest(stream_id)
        self._drafted_by.pop(stream_id, None)

    def lose(self, model_id: str) -> None:
        """A draft model is gone: nobody asks it any more."""
        self._drafters.pop(model_id, None)

    @property
    def nbytes(self) -> int:
        """What drafters keep on the device."""
        return sum(drafter.nbytes for drafter in self._drafters.values())

    def is_likely(self, rows: Rows) -> bool:
        """Whether a draft is likely enough that it is worth reading first what was launched: as far as can be told
        without."""
        hopes: list[Hope] = []
        tried: list[Drafting] = []
        asked: set[str] = set()
        for index, row, drafting in _eager(rows):
            tokens = _room(row, drafting)
            if drafting.outcome == "ngram" and tokens > 0:
                tokens = len(drafting.look_up(row.prompt, row.drawn, tokens))
                if tokens:
                    tried.append(drafting)
            elif tokens > 0:
                asked.add(self._drafted_by[rows[index][0]])
            if tokens > 0:
                hopes.append(Hope(drafting.acceptance, tokens))
        if not self._width(hopes, rows, asked):
            return False
        self._tried = tried
        return True

    def propose(self, rows: Rows) -> list[list[int]] | None:
        """For each row a draft, which may be empty; None if all are. Everything that was launched must be read."""
        drafts: list[list[int]] = [[] for _ in rows]
        wishes: dict[int, Wish] = {}
        hopes: list[Hope] = []
        for index, row, drafting in _eager(rows):
            tokens = _room(row, drafting)
            if tokens <= 0:
                continue
            if drafting.outcome == "ngram":
                drafts[index] = drafting.look_up(row.prompt, row.drawn, tokens)
                tokens = len(drafts[index])
                if not tokens and any(one is drafting for one in self._tried):
                    rests = drafting.rests
                    drafting.missed(row.position)
                    self.counts += SpeculationCounts(rests=drafting.rests - rests)
            else:
                wishes[index] = Wish(rows[index][0], row, tokens)
            if tokens:
                hopes.append(Hope(drafting.acceptance, tokens))
        self._tried = []
        width = self._width(hopes, rows, {self._drafted_by[wish.stream_id] for wish in wishes.values()})
        if not width:
            return None
        drafts = [draft[:width] for draft in drafts]
        self._ask(wishes, width, drafts)
        return drafts if any(drafts) else None

    def learn(self, rows: Rows, draws: Sequence[Draws]) -> None:
        """What came of the drafts of these rows, which have taken it."""
        self.counts += SpeculationCounts(checks=1)
        for (_, row), drawn in zip(rows, draws, strict=True):
            if not drawn.drafted or row.drafting is None:
                continue
            rests = row.drafting.rests
            row.drafting.checked(drawn.drafted, drawn.accepted, row.position)
            self.counts += SpeculationCounts(
                drafted=drawn.drafted, accepted=drawn.accepted, rests=row.drafting.rests - rests
            )

    def _width(self, hopes: Sequence[Hope], rows: Rows, models: Collection[str]) -> int:
        """How many tokens to draft at most, for which so many draft models are asked."""
        costs = [self._draft_costs[model] for model in models]
        pass_tokens = self.cost.tokens
        drafting = sum(cost.part for cost in costs) * (pass_tokens + len(rows))
        width = draft_width(hopes, len(rows), pass_tokens, drafting)
        if hopes and not width:
            self.counts += SpeculationCounts(declined=1)
            self.cost.doubt()
            for cost in costs:
                cost.doubt()
        return width

    def _ask(self, wishes: dict[int, Wish], width: int, drafts: list[list[int]]) -> None:
        """Have draft models write the drafts that are wished for."""
        rows = len(drafts)
        by_model: dict[str, list[int]] = {}
        for index, wish in wishes.items():
            by_model.setdefault(self._drafted_by[wish.stream_id], []).append(index)
        for model_id, indices in by_model.items():
            asked = [Wish(wishes[i].stream_id, wishes[i].row, min(width, wishes[i].most)) for i in indices]
            began = time.monotonic()
            proposed = self._proposed(model_id, asked)
            pass_s = self.cost.expected_s(rows)
            self._draft_costs[model_id].learn(max(map(len, proposed)), time.monotonic() - began, pass_s)
            for index, draft in zip(indices, proposed, strict=True):
                drafts[index] = draft

    def _proposed(self, model_id: str, wishes: Sequence[Wish]) -> list[list[int]]:
        drafter = self._drafters.get(model_id)
        if drafter is not None:
            try:
                return drafter.propose(wishes)
            except Exception as error:
                if tells_of_memory(error):
                    raise
                traceback.print_exc()  # what it drafts for goes on without
                self.lose(model_id)
        for wish in wishes:
            if wish.row.drafting is not None:
                wish.row.drafting.lose()
        return [[] for _ in wishes]


def _eager(rows: Rows) -> list[tuple[int, SamplingRow, Drafting]]:
    return [
        (index, row, row.drafting)
        for index, (_, row) in enumerate(rows)
        if row.drafting is not None and row.drafting.is_eager(row.position) and is_checkable(row)
    ]


def _room(row: SamplingRow, drafting: Drafting) -> int:
    """How many tokens may be drafted for it; none where it has drawn its end."""
    if row.drawn and row.drawn[-1] in row.rules.ends:
        return 0
    return drafting.most if row.max_tokens is None else min(drafting.most, row.max_tokens - _AHEAD - row.position)
