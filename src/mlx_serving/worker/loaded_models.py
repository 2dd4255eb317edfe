"""The models in this worker, by the names that callers know them by. Each belongs to one thread."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_serving.errors import ModelNotLoaded
from mlx_serving.worker.loaded_model import LoadedModel
from mlx_serving.worker.weights import Base


class LoadedModels:
    """A model that is `leaving` takes nothing new and goes when its last stream has ended."""

    def __init__(self) -> None:
        self._models: dict[str, LoadedModel] = {}
        self._leaving: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __contains__(self, model_id: object) -> bool:
        return model_id in self._models

    def find(self, model_id: str) -> LoadedModel | None:
        """The model, whether it is leaving or not."""
        return self._models.get(model_id)

    def get(self, model_id: str) -> LoadedModel:
        """The model, for something new. Raises `ModelNotLoaded`, which lists what is loaded."""
        model = self._models.get(model_id)
        if model is None or model_id in self._leaving:
            raise ModelNotLoaded(f"Model {model_id} is not loaded", model=model_id, loaded=sorted(self._models))
        return model

    def find_base(self, key: str) -> Base | None:
        """The weights with this key, if any model has them."""
        bases = (model.base for model in self._models.values())
        return next((base for base in bases if base is not None and base.key == key), None)

    def snapshot(self) -> LoadedModels:
        """A copy, for another thread."""
        copy = LoadedModels()
        copy._models, copy._leaving = dict(self._models), set(self._leaving)
        return copy

    def add(self, model: LoadedModel) -> None:
        self._models[model.model_id] = model

    def is_leaving(self, model_id: str) -> bool:
        return model_id in self._leaving

    def leave(self, model_id: str) -> None:
        self._leaving.add(model_id)

    def remove(self, model_id: str) -> None:
        del self._models[model_id]
        self._leaving.discard(model_id)
