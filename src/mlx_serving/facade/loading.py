"""An engine that loads models, and says what is in memory and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mlx_serving.config.profiles import Profile
from mlx_serving.core.weight_options import AS_THEY_ARE
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.errors import InvalidRequest, ModelLoadError, ModelNotLoaded
from mlx_serving.facade.life import LivingEngine
from mlx_serving.facade.model_options import LoadModelOptions
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.shapes import CachedModel, ModelAlias, ModelCacheStats, ModelHandle
from mlx_serving.facade.speculation import CompatibilityReport
from mlx_serving.facade.vision import LoadVisionModelOptions, VisionModelHandle
from mlx_serving.wire import methods


class LoadingEngine(LivingEngine):
    """What `Engine` does with models."""

    _drafts: tuple[str, ...] = ()  # models that were loaded to draft, in that order

    async def load_model(self, options: LoadModelOptions | Mapping[str, object] | str) -> ModelHandle:
        """Load a model: a configured name, a hub id, a path, a GGUF file or an alias. With an adapter it gets a name of
        its own, `handle.id`, and shares the weights of its model with others.

        Raises `ModelLoadError`, `ModelNotFound`, and `InvalidRequest` when it is loaded with other options.
        """
        asked = parse(LoadModelOptions, options)
        await self.start()
        given = (asked.revision, asked.context_length, asked.local_path)
        name, form = asked.served_name, asked.weights
        meant, _ = self._core.aliases.resolve(name)
        known = self._core.models.spec(meant) if meant in self._core.models.names() else None
        is_plain = given == (None, None, None) and form == AS_THEY_ARE
        if known is not None and is_plain and asked.model in (name, known.reference):
            spec = known
        else:
            spec = ModelSpec(name, asked.model, *given, weights=form)
        spec = spec.staying(asked.pin, asked.keep_alive)
        facts = await self._core.load(replace(spec, draft=True) if asked.draft else spec)
        if asked.draft:
            if not facts.capabilities.draft:  # it was there already
                raise InvalidRequest(f"draft: {name} cannot take tokens back, so it cannot draft", field="draft")
            self._drafts = (*(each for each in self._drafts if each != name), name)
        return self._handle(name, facts)

    async def load_draft_model(self, options: LoadModelOptions | Mapping[str, object] | str) -> ModelHandle:
        """Load a model that is to draft for others: as `load_model`. Raises `InvalidRequest` for one that cannot."""
        asked = parse(LoadModelOptions, options)
        return await self.load_model(asked.model_copy(update={"draft": True}))

    async def unload_draft_model(self, model: str | None = None) -> None:
        """Take a draft model out of memory when nobody uses it any more; by default the one that was loaded last.
        Raises `ModelNotLoaded` if none was."""
        name = model or next(reversed(self._drafts), None)
        if name is None:
            raise ModelNotLoaded("No draft model is loaded", loaded=[handle.id for handle in self.list_models()])
        await self.unload_model(name)
        self._drafts = tuple(each for each in self._drafts if each != name)

    async def is_draft_model_compatible(self, primary: str, draft: str) -> CompatibilityReport:
        """Whether one model can draft for another, by their vocabularies, caches and sizes. Both are loaded for it.
        Raises `ModelNotFound`, and what a load raises."""
        await self.start()
        return CompatibilityReport.of(await self._core.check_draft(primary, draft))

    async def load_vision_model(
        self, options: LoadVisionModelOptions | Mapping[str, object] | str
    ) -> VisionModelHandle:
        """The same for a model that takes pictures. Raises `ModelLoadError` for one that takes none, too; if it was not
        in memory before, it is not then."""
        asked = parse(LoadVisionModelOptions, options)
        known = self.get_model_info(asked.served_name) is not None
        handle = await self.load_model(asked)
        facts = self._core.models.loaded().get(self._core.aliases.resolve(handle.id)[0])
        if facts is None or not facts.is_vision_model:
            if not known:
                await self.unload_model(handle.id)
            raise ModelLoadError(f"{handle.id} is no vision model: load it with load_model", model=handle.id)
        return VisionModelHandle.of_vision(handle, facts, self._config)

    async def unload_model(self, model: str, *, force: bool = False) -> None:
        """Take a model out of memory, after its last stream or at once. Raises `ModelNotFound`; an alias has nothing
        of its own that could go."""
        self._home.enter()
        await self._core.unload_served(model, force=force)

    def list_models(self) -> list[ModelHandle]:
        """The models in memory."""
        return [self._handle(name, facts) for name, facts in self._core.models.loaded().items()]

    def get_model_info(self, model: str) -> ModelHandle | None:
        facts = self._core.models.loaded().get(self._core.aliases.resolve(model)[0])
        return None if facts is None else self._handle(model, facts)

    def _handle(self, name: str, facts: methods.LoadModelResult) -> ModelHandle:
        meant, _ = self._core.aliases.resolve(name)
        return ModelHandle.of(name, self._core.models.spec(meant).reference, facts, draft=name in self._drafts)

    # -- aliases

    async def set_alias(
        self,
        name: str,
        model: str,
        *,
        revision: str | None = None,
        profile: Profile | Mapping[str, object] | None = None,
    ) -> ModelAlias:
        """Have a name mean another model, from the moment that it is loaded: a served one, or where to load one from.
        Streams that run stay with the model they began with. `profile` is what holds under the name where a request is
        silent.

        If the model cannot be loaded, the name means what it meant. Raises `ModelLoadError`, `ModelNotFound` and
        `InvalidRequest`.
        """
        checked = parse(Profile, {} if profile is None else profile)
        await self.start()
        return ModelAlias.of(await self._core.set_alias(name, model, revision=revision, profile=checked.core))

    async def rollback_alias(self, name: str) -> ModelAlias | None:
        """Have a name mean what it meant before; None when that is the model of that name. Raises as `set_alias`, and
        `NotFound`."""
        await self.start()
        view = await self._core.roll_back_alias(name)
        return None if view is None else ModelAlias.of(view)

    def remove_alias(self, name: str) -> None:
        """Forget what was set. Raises `NotFound`, and `InvalidRequest` for an alias that is only configured."""
        self._core.remove_alias(name)

    def list_aliases(self) -> list[ModelAlias]:
        return [ModelAlias.of(view) for view in self._core.list_aliases()]

    def get_cache_stats(self) -> ModelCacheStats:
        models = [CachedModel(model.name, model.state) for model in self._core.served_models()]
        return ModelCacheStats(len(self.list_models()), models)

    # The ancestor's spelling.
    loadModel = load_model  # noqa: N815
    loadVisionModel = load_vision_model  # noqa: N815
    unloadModel = unload_model  # noqa: N815
    loadDraftModel = load_draft_model  # noqa: N815
    unloadDraftModel = unload_draft_model  # noqa: N815
    isDraftModelCompatible = is_draft_model_compatible  # noqa: N815
    listModels = list_models  # noqa: N815
    setAlias = set_alias  # noqa: N815
    rollbackAlias = rollback_alias  # noqa: N815
    removeAlias = remove_alias  # noqa: N815
    listAliases = list_aliases  # noqa: N815
    getModelInfo = get_model_info  # noqa: N815
    getCacheStats = get_cache_stats  # noqa: N815
