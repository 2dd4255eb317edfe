"""Reading the configuration again while it serves: the shell around `config.changes`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mlx_serving.config.changes import Plan, plan, without
from mlx_serving.config.schema import Config
from mlx_serving.errors import EngineError, InvalidConfig
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")


class Reconfigurable(Protocol):
    """An engine that can go on with another configuration."""

    def adopt(self, plan: Plan) -> None:
        """Do what can be done at once. Raises `InvalidConfig` before anything has changed."""
        ...

    async def carry_out(self, plan: Plan) -> Mapping[str, EngineError]:
        """Do the rest. Returns by name why models could not be replaced. Raises `WorkerDied`."""
        ...


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What was done. `failed` tells by name why models could not be replaced: of these, the old versions serve."""

    plan: Plan
    failed: Mapping[str, EngineError]


class Reloader:
    """One reload at a time; each begins where the last one ended."""

    def __init__(
        self,
        config: Config,
        read: Callable[[], Config],
        engine: Reconfigurable,
        apply: Callable[[Config], None],
    ) -> None:
        """`config` is what holds now; `read` gets it anew from where it came from, or raises `InvalidConfig`; `apply`
        takes what is not the engine's."""
        self._config = config
        self._read = read
        self._engine = engine
        self._apply = apply
        self._turn = asyncio.Lock()

    @property
    def config(self) -> Config:
        """What holds now."""
        return self._config

    async def reload(self) -> Reloaded:
        """Read, compare, apply, and log in one line what changed. Raises `InvalidConfig`, then all stays as it was, and
        `WorkerDied` when a fresh worker does not come up, then the models stay as they were."""
        async with self._turn:
            try:
                wanted = plan(self._config, self._read())
                self._engine.adopt(wanted)
            except InvalidConfig as error:
                _log.error("configuration refused", message=error.message, problems=error.details.get("issues"))
                raise
            before, self._config = self._config, wanted.config
            self._apply(wanted.config)
            try:
                failed = await self._engine.carry_out(wanted)
            except EngineError as error:
                # What was not done is wanted again the next time.
                self._config = wanted.config.model_copy(update={"models": before.models})
                _log.error("configuration reloaded in part", code=error.code, message=error.message)
                raise
            done = without(wanted, before, failed)
            self._config = done.config
            _tell(done, failed)
            return Reloaded(done, failed)


def _tell(done: Plan, failed: Mapping[str, EngineError]) -> None:
    """One line for what changed, and one for each thing that did not."""
    models = {"added": done.added, "removed": done.removed, "replaced": done.replaced}
    _log.info(
        "configuration reloaded",
        changed=list(done.changed),
        **{f"models_{how}": [model.name for model in which] for how, which in models.items() if which},
        worker="restarted" if done.fresh_worker else "kept",
    )
    for kept in done.kept:
        _log.warning("a setting needs a new start", setting=kept.path, value=kept.value, wanted=kept.wanted)
    for name, error in failed.items():
        _log.error("model not replaced", model=name, code=error.code, message=error.message)
