"""Names that mean other models, and are moved from one to another while requests come: the shell around
`core.alias_table`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_serving.config.model_names import public_name
from mlx_serving.core.alias_table import AliasTable, AliasView, Target
from mlx_serving.core.model_profile import NO_PROFILE, ModelProfile
from mlx_serving.core.serving import ServedModel
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.engine import alias_file
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.engine.pooled_models import PooledModels
from mlx_serving.errors import EngineError, InsufficientMemory, InvalidRequest, ModelNotFound
from mlx_serving.telemetry.events import AliasMoved, EventBus
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.engine")
_MAX_NAME = 256


class Aliases:
    """`path` is the file that remembers what was set; None forgets it at the end."""

    def __init__(self, models: PooledModels, events: EventBus, path: Path | None) -> None:
        """Raises `InvalidConfig` for a file that cannot be read."""
        self._models = models
        self._events = events
        self._path = path
        self._table = AliasTable(set={} if path is None else alias_file.read(path))
        self._profiles: Mapping[str, ModelProfile] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    def reconfigure(
        self, configured: Mapping[str, Target], profiles: Mapping[str, ModelProfile], leaving: Collection[str] = ()
    ) -> None:
        """Take the aliases of a configuration, and the profiles of its models by name. What was set wins, unless its
        model is not served any more, or about to leave."""
        for targets in self._table.set.values():
            for target in targets:
                if target.reference is not None and target.model not in self._models.names():
                    self._models.register(ModelSpec(target.model, target.reference, target.revision))
        self._profiles = profiles
        before = self._table
        served = [name for name in self._models.names() if name not in leaving]
        table, ended = before.reconfigured(configured, served)
        self._table = table
        for name, target in ended.items():
            _log.warning("an alias that was set is gone, because its model is not served", alias=name, **_told(target))
        if changed := [name for name, targets in before.set.items() if table.set.get(name) != targets]:
            self._save(changed)

    def resolve(self, name: str) -> tuple[str, ModelProfile]:
        """The name of the model that a name means now, and what holds under that name."""
        target = self._table.target(name)
        if target is None:
            return name, self._profiles.get(name, NO_PROFILE)
        return target.model, target.profile.over(self._profiles.get(target.model, NO_PROFILE))

    def draft_model(self, name: str, field: str = "draft_model") -> str:
        """The name of the model that a draft model's name means now. Raises `InvalidRequest`, which names `field`, for
        one that is not served."""
        model, _ = self.resolve(name)
        served = self._models.names()
        if model not in served:
            hint = did_you_mean(name, [*served, *self._table.names()])
            raise InvalidRequest(
                f"{field}: the model {name} is not served here" + (f"; did you mean {hint}?" if hint else ""),
                field=field,
                given=name,
            )
        return model

    def require_no_alias(self, name: str, served: Collection[str]) -> None:
        """Raises `InvalidRequest` where a model of that name could not be reached, because an alias goes before it."""
        if name not in served and (target := self._table.target(name)) is not None:
            raise InvalidRequest(
                f"{name} is an alias of {target.model}: give another name, or remove the alias first",
                field="name",
                given=name,
            )

    def require_model(self, name: str) -> None:
        """Raises `ModelNotFound` for an alias that has not the name of a model as well: nothing of its own is in
        memory."""
        target = self._table.target(name)
        if target is not None and name not in self._models.names():
            raise ModelNotFound(
                f"{name} is an alias: unload the model that it means, {target.model}", model=name, alias_of=target.model
            )

    async def until_settled(self, name: str) -> None:
        """Returns when nobody is about to move a name."""
        if (turn := self._turns.get(name)) is not None:
            async with turn:
                pass

    def views(self) -> list[AliasView]:
        """All aliases."""
        return self._table.views()

    def served(self, models: Sequence[ServedModel], default: str) -> list[ServedModel]:
        """The models with their profiles, and the aliases beside them."""
        by_name = {model.name: model for model in models}
        rows = {
            name: replace(model, profile=self._profiles.get(name, NO_PROFILE).given())
            for name, model in by_name.items()
        }
        for name in self._table.names():
            model, profile = self.resolve(name)
            if (meant := by_name.get(model)) is not None:
                rows[name] = replace(meant, name=name, alias_of=model, default=name == default, profile=profile.given())
        return list(rows.values())

    async def set(
        self, name: str, model: str, *, revision: str | None = None, profile: ModelProfile = NO_PROFILE
    ) -> AliasView:
        """Have a name mean another model, from the moment that it is loaded. Who uses the old one goes on with it.

        `model` is a served one, or where to load one from, which is served under a name of its own then. It is loaded
        beside those in use, or, where memory does not hold both, after them: then who comes meanwhile waits. If it
        cannot be loaded, the name means what it meant. Raises `InvalidRequest`, `ModelNotFound`, `ModelLoadError` or
        `WorkerDied`.
        """
        _check_name(name)
        if profile.draft_model is not None:
            self.draft_model(profile.draft_model, "profile.draft_model")
        async with self._turns.setdefault(name, asyncio.Lock()):
            known = self._models.names()
            target = replace(self._target(model, revision), profile=profile, since=time.time())
            try:
                await self._move(name, self._table.with_target(name, target), target.model)
            except EngineError as error:
                if target.model in known:
                    raise
                self._models.forget(target.model)
                if isinstance(error, ModelNotFound):
                    raise _not_found(model, known, error) from error
                raise
        return self._table.view(name)

    async def roll_back(self, name: str) -> AliasView | None:
        """Have a name mean what it meant before; None when that is no alias, but the model of that name. Raises as
        `set`, and `NotFound`."""
        async with self._turns.setdefault(name, asyncio.Lock()):
            table = self._table.rolled_back(name, is_served=name in self._models.names())
            target = table.target(name)
            await self._move(name, table, name if target is None else target.model)
        return None if target is None else self._table.view(name)

    def remove(self, name: str) -> None:
        """Forget what was set; the name means what is configured, if anything is. Raises `NotFound`, and
        `InvalidRequest` for an alias that is only configured."""
        self._take(name, self._table.without(name))

    def _target(self, model: str, revision: str | None) -> Target:
        names = self._models.names()
        if model not in names and (meant := self._table.target(model)) is not None:
            model = meant.model
        if model in names and revision in (None, self._models.spec(model).revision):
            return Target(model)
        if model in names:  # another revision of where it comes from
            model = self._models.spec(model).reference
        own = public_name(model) + ("" if revision is None else f"@{revision}")
        spec = ModelSpec(own, model, revision, warm_up=True)
        if own in names and self._models.spec(own) != spec:
            raise InvalidRequest(
                f"{own} is the name of {self._models.spec(own).reference} already: load {model} under a name of its "
                "own first",
                field="model",
                given=model,
            )
        self._models.register(spec)
        return Target(own, reference=model, revision=revision)

    async def _move(self, name: str, table: AliasTable, model: str) -> None:
        before = self._table
        try:
            await self._models.bring(model)
        except InsufficientMemory:
            self._take(name, table)
            try:
                async with self._models.lease(model):
                    self._require_served(model)
                    return
            except BaseException:  # also when nobody waits for it any more
                self._take(name, before)
                raise
        self._require_served(model)
        self._take(name, table)

    def _require_served(self, model: str) -> None:
        """Raises `ModelNotFound` for a model that a new configuration has taken away while it was loaded."""
        if model not in self._models.names():
            raise ModelNotFound(f"{model} is not served any more: the configuration has changed", model=model)

    def _take(self, name: str, table: AliasTable) -> None:
        before, now = self._table.target(name), table.target(name)
        # Others may have been moved while this one was loaded, and models may have gone.
        others = {other: targets for other, targets in self._table.set.items() if other != name}
        own = {name: table.set[name]} if name in table.set else {}
        moved = replace(self._table, set={**others, **own})
        self._table, _ = moved.reconfigured(moved.configured, self._models.names())
        self._save([name])
        self._events.publish(
            AliasMoved(
                alias=name,
                model_id=now.model if now is not None else None,
                previous=before.model if before is not None else None,
            )
        )

    def _save(self, changed: Collection[str]) -> None:
        if self._path is None:
            return
        try:
            alias_file.write(self._path, self._table.set, changed)
        except OSError as error:
            _log.error("the aliases could not be saved", file=str(self._path), message=str(error))


def _not_found(model: str, served: Sequence[str], error: ModelNotFound) -> ModelNotFound:
    hint = did_you_mean(model, served)
    return ModelNotFound(
        f"{model!r} is not served here" + (f" (did you mean {hint}?)" if hint else "") + f", and {error.message}",
        model=model,
        served=list(served),
    )


def _told(target: Target) -> dict[str, object]:
    return {"model": target.model}


def _check_name(name: str) -> None:
    if not name or len(name) > _MAX_NAME or any(char.isspace() or not char.isprintable() for char in name):
        shown = f"{len(name)} characters" if len(name) > _MAX_NAME else repr(name)
        raise InvalidRequest(
            f"The name of an alias must have 1 to {_MAX_NAME} printable characters and no spaces, got {shown}",
            field="name",
            limit=_MAX_NAME,
            given=name[:_MAX_NAME],
        )
