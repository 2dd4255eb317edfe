"""The models that sequences run on, and who has to know of them as they come and go."""

from __future__ import annotations

import math

from mlx_serving.core.scheduler import Scheduler
from mlx_serving.core.speculation.policy import SpeculationCounts
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.prefix.cache import PrefixCache
from mlx_serving.worker.vision.features import FeatureCache


class RunningModels:
    """The scheduler orders steps of these models; `prefixes` and `features` keep what they make."""

    def __init__(self, scheduler: Scheduler, prefixes: PrefixCache, features: FeatureCache) -> None:
        self._scheduler = scheduler
        self._prefixes = prefixes
        self._features = features
        self.by_id: dict[str, LoadedModel] = {}
        self._drafted_by_others = SpeculationCounts()  # by runners that are gone

    def add(self, model: LoadedModel) -> None:
        self.by_id[model.model_id] = model
        capabilities = model.facts.capabilities
        self._prefixes.add_model(model.model_id, model.fingerprint, exact=not model.cuttable, form=model.options.kv)
        model.runner.offer = self._prefixes.offer
        self._scheduler.add_model(
            model.model_id,
            kv_bytes_per_token=model.kv_bytes_per_token,
            batchable=capabilities.batch,
            trimmable=capabilities.trim,
            exact_prefixes=not model.cuttable,
            prefill_memory=model.prefill_memory,
        )

    def remove(self, model_id: str) -> None:
        """Forget a model that has no sequences left. Those that it has drafted for go on without."""
        model = self.by_id.pop(model_id)
        self._drafted_by_others += model.runner.speculator.counts
        model.runner.close()
        for other in self.by_id.values():
            other.runner.speculator.lose(model_id)
        if all(other.fingerprint != model.fingerprint for other in self.by_id.values()):
            self._features.remove_model(model.fingerprint)
        self._prefixes.remove_model(model_id)
        self._scheduler.remove_model(model_id)

    def renew_runner(self, model: LoadedModel) -> None:
        """Give a model a runner that knows of no sequence."""
        self._drafted_by_others += model.runner.speculator.counts
        model.renew_runner()
        model.runner.offer = self._prefixes.offer

    def cache_bytes(self) -> dict[str, int]:
        """What the caches of each model's sequences take, their room to grow included."""
        return {model_id: model.runner.cache_bytes for model_id, model in self.by_id.items()}

    @property
    def nbytes(self) -> int:
        """The same of all together."""
        return sum(self.cache_bytes().values())

    def spare(self, padding: int) -> None:
        """From now on, no batch is to take more than so many bytes for padding and for room to grow."""
        for model in self.by_id.values():
            size = model.kv_bytes_per_token
            model.runner.spare(padding / size if size else math.inf)

    def shrink(self) -> None:
        """Have the caches give back the room to grow that they have."""
        for model in self.by_id.values():
            model.runner.shrink()

    def speculation(self) -> SpeculationCounts:
        """What was drafted, over all models since the start."""
        return sum((model.runner.speculator.counts for model in self.by_id.values()), self._drafted_by_others)
