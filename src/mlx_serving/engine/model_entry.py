"""One model as its manager sees it: what it is, how it stands, and who waits for it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

from mlx_serving.core import residency_states as residency
from mlx_serving.core.model_room import Resident, Use
from mlx_serving.core.placement import Holding
from mlx_serving.core.residency_states import Residency, Ticket
from mlx_serving.core.serving import LoadProgress, ServedModel
from mlx_serving.core.weight_options import AS_THEY_ARE, WeightOptions
from mlx_serving.errors import EngineError
from mlx_serving.wire.methods import KnownCapabilities, LoadModelResult, Pooling


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that can be named: `reference` is what the worker loads, `name` what callers say.

    How it stays in memory makes no other model of it: a `pinned` one gives way to nobody, `keep_alive_s` is how long it
    may be idle (None: as all others, negative: for ever), and with `warm_up` it generates a few tokens before anybody
    gets it. A `draft` that cannot draft for others is not loaded.
    """

    name: str
    reference: str
    revision: str | None = None
    context_length: int | None = None
    local_path: str | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    pooling: Pooling | None = None
    weights: WeightOptions = AS_THEY_ARE
    pinned: bool = field(default=False, compare=False, repr=False)
    keep_alive_s: float | None = field(default=None, compare=False, repr=False)
    warm_up: bool = field(default=False, compare=False, repr=False)
    draft: bool = field(default=False, compare=False, repr=False)

    def with_reference(self, reference: str, revision: str | None, weights: WeightOptions | None) -> ModelSpec:
        """The same name and settings for another model; `weights` of None stay as they are as well."""
        form = self.weights if weights is None else weights
        return replace(self, reference=reference, revision=revision, weights=form, local_path=None)

    def staying(self, pinned: bool | None, keep_alive_s: float | None) -> ModelSpec:
        """The same model, kept in memory like that; None leaves it as it is."""
        return replace(
            self,
            pinned=self.pinned if pinned is None else pinned,
            keep_alive_s=self.keep_alive_s if keep_alive_s is None else keep_alive_s,
        )


@dataclass(slots=True)
class Entry:
    """One version of a model.

    `in_worker` is whether a load was sent to the worker that lives now, `loads` how many there were, `known` what the
    last one found, in `directory`. The worker knows it by `worker_id`, because two versions of a model may be there at
    a time; one that is `retired` has lost its name to another. Those who hold the tickets in `modest` can do without
    it: nobody else's streams are made to end for them.
    """

    spec: ModelSpec
    created: int
    worker_id: str
    state: Residency[LoadModelResult] = field(default_factory=residency.Absent)
    waiting: dict[Ticket, asyncio.Future[LoadModelResult]] = field(
        default_factory=dict[Ticket, "asyncio.Future[LoadModelResult]"]
    )
    lost: dict[Ticket, EngineError] = field(default_factory=dict[Ticket, EngineError])
    modest: set[Ticket] = field(default_factory=set[Ticket])
    in_worker: bool = False
    loads: int = 0
    known: KnownCapabilities | None = None
    directory: Path | None = None
    progress: LoadProgress | None = None
    use: Use = field(default_factory=Use)
    retired: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def holding(self) -> Holding:
        """What the worker has of it."""
        match self.state:
            case residency.Absent():
                return Holding.ABSENT
            case residency.Loading():
                return Holding.LOADING
            case residency.Ready():
                return Holding.READY
            case residency.Draining() | residency.Evicting():
                return Holding.LEAVING
            case residency.LoadFailed():
                return Holding.FAILED
            case _:
                assert_never(self.state)

    @property
    def facts(self) -> LoadModelResult | None:
        """What is known of a model that serves."""
        return self.state.facts if isinstance(self.state, residency.Ready | residency.Draining) else None

    @property
    def first_user(self) -> float:
        """The ticket of the one who has used it, or waited for it, for longest."""
        match self.state:
            case residency.Ready() | residency.Draining():
                return min(self.state.in_use, default=math.inf)
            case residency.Loading() | residency.Evicting():
                return min(self.state.waiters, default=math.inf)
            case residency.Absent() | residency.LoadFailed():
                return math.inf
            case _:
                assert_never(self.state)

    @property
    def is_leaving(self) -> bool:
        match self.state:
            case residency.Draining() | residency.Evicting():
                return True
            case residency.Loading():
                return self.state.unload
            case residency.Absent() | residency.Ready() | residency.LoadFailed():
                return False
            case _:
                assert_never(self.state)

    def resident(self) -> Resident | None:
        """As one that may have to give way: only who is ready can be asked to."""
        if not isinstance(self.state, residency.Ready):
            return None
        facts = self.state.facts
        return Resident(
            name=self.spec.name,
            size=facts.memory_bytes if facts.own_bytes is None else facts.own_bytes,
            use=self.use,
            idle_since=None if self.state.in_use else self.state.last_used,
            pinned=self.spec.pinned,
            keep_alive_s=self.spec.keep_alive_s,
            shares=facts.base,
            shared_size=0 if facts.own_bytes is None else facts.memory_bytes - facts.own_bytes,
        )

    def served(self, default: str | None) -> ServedModel:
        """For those who ask what is served."""
        state = self.state
        error: str | None = None
        match state:
            case residency.Absent():
                stage = "absent"
            case residency.Loading():
                stage = "loading"
            case residency.Ready():
                stage = "ready"
            case residency.Draining() | residency.Evicting():
                stage = "draining"
            case residency.LoadFailed():
                stage, error = "failed", state.error.message
            case _:
                assert_never(state)
        facts = self.facts
        return ServedModel(
            name=self.spec.name,
            reference=self.spec.reference,
            created=self.created,
            state=stage,
            context_length=self.spec.context_length if facts is None else facts.context_length,
            error=error,
            default=self.spec.name == default,
            abilities=None if facts is None else _abilities(facts),
            revision=self.spec.revision,
            pinned=self.spec.pinned,
            keep_alive_s=self.spec.keep_alive_s,
            memory_bytes=None if facts is None else facts.memory_bytes,
            kv_bits=None if self.spec.weights.kv is None else self.spec.weights.kv.bits,
            in_use=len(state.in_use) if isinstance(state, residency.Ready | residency.Draining) else 0,
            progress=self.progress if isinstance(state, residency.Loading) else None,
        )


def _abilities(facts: LoadModelResult) -> tuple[str, ...]:
    if facts.embedding is not None:
        return ("rerank", "score") if facts.embedding.scores else ("embeddings",)
    return (
        "completions",
        *(("chat",) if facts.has_chat_template else ()),
        *(("vision",) if facts.is_vision_model else ()),
    )
