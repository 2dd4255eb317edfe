"""Another version of a model under the name of the one that serves."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from mlx_serving.core import residency_states as residency
from mlx_serving.core.residency_states import ResidencyEvent
from mlx_serving.engine.model_entry import Entry, ModelSpec
from mlx_serving.errors import InsufficientMemory, WorkerDied
from mlx_serving.wire.methods import LoadModelResult

Version: TypeAlias = Entry
"""One version of a model, for who prepares it."""


class Holder(Protocol):
    """Who holds the models, and carries out what happens to them."""

    @property
    def entries(self) -> dict[str, Entry]:
        """Those that have a name."""
        ...

    @property
    def closed(self) -> bool: ...

    def entry(self, name: str) -> Entry:
        """Raises `ModelNotFound`."""
        ...

    def dispatch(self, entry: Entry, event: ResidencyEvent[LoadModelResult]) -> None: ...

    def lease_entry(self, entry: Entry, *, modest: bool) -> AbstractAsyncContextManager[LoadModelResult]: ...

    async def gone(self, entry: Entry) -> None:
        """Returns when the worker has let go of it."""
        ...

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None: ...


class Replacement:
    """`aside` are versions that have no name yet, or no more. `turns` has the names whose versions change places, of
    which leases wait."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._numbers = itertools.count(1)
        self.aside: list[Entry] = []
        self._turns: dict[str, asyncio.Event] = {}

    async def wait_turn(self, name: str) -> None:
        """Returns when no version of the model has to go before the other one can come."""
        while (turn := self._turns.get(name)) is not None:
            await turn.wait()

    async def prepare(self, spec: ModelSpec) -> Version:
        """Load another version of a model that is known, which `install` or `discard` must follow.

        It is loaded beside the one that serves, or, where memory does not hold both, after it: then leases of the name
        wait. Raises `ModelLoadError`, `ModelNotFound` or `WorkerDied`; then the old one serves, or is loaded again.
        """
        old = self._holder.entry(spec.name)
        new = self._version(spec, old)
        try:
            try:
                await self._load(new)
            except InsufficientMemory:
                if not isinstance(old.state, residency.Ready | residency.Draining):
                    raise
                self._turns[spec.name] = asyncio.Event()
                self._holder.dispatch(old, residency.UnloadForced(f"{spec.name} is being replaced", replaced=True))
                await self._holder.gone(old)
                await self._load(new)
        except BaseException:
            self.discard(new)
            raise
        return new

    def install(self, spec: ModelSpec, version: Version | None) -> None:
        """Have the name mean another version from now on, which is loaded when it is needed if it was not prepared.
        Who uses the old one goes on with it."""
        old = self._holder.entry(spec.name)
        new = version or self._version(spec, old)
        new.use = old.use
        self.aside.remove(new)
        self._holder.entries[spec.name] = new
        self.aside.append(old)
        self._retire(old)
        self._end_turn(spec.name)

    def discard(self, version: Version) -> None:
        """Let go of a version that was prepared. If the old one had to make room for it, it comes back."""
        self._retire(version)
        name = version.spec.name
        if self._end_turn(name) and name in self._holder.entries and not self._holder.closed:
            self._holder.dispatch(self._holder.entry(name), residency.Preload())

    def close(self) -> None:
        for turn in self._turns.values():
            turn.set()

    def _version(self, spec: ModelSpec, old: Entry) -> Entry:
        entry = Entry(spec, old.created, worker_id=f"{spec.name}@{next(self._numbers)}")
        self.aside.append(entry)
        return entry

    async def _load(self, entry: Entry) -> None:
        while True:
            try:
                async with self._holder.lease_entry(entry, modest=True):
                    return
            except WorkerDied as error:  # it is loaded again, and given up when that is the cause
                if not error.retryable:
                    raise

    def _end_turn(self, name: str) -> bool:
        turn = self._turns.pop(name, None)
        if turn is not None:
            turn.set()
        return turn is not None

    def _retire(self, entry: Entry) -> None:
        """Let go of a version that stands aside."""
        entry.retired = True
        self._holder.dispatch(entry, residency.UnloadForced(f"{entry.spec.name} was replaced", replaced=True))
        self._holder.spawn(self._forget(entry), f"retire {entry.worker_id}")

    async def _forget(self, entry: Entry) -> None:
        await self._holder.gone(entry)
        self.aside.remove(entry)
