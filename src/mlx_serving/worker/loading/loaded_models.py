"""The models in this worker, by the names that callers know them by. Each belongs to one thread."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_serving.errors import InvalidRequest, ModelNotLoaded
from mlx_serving.worker.embedding.model import EmbeddingModel
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.weights import Base


class LoadedModels:
    """A model that is `leaving` takes nothing new and goes when its last stream has ended."""

    def __init__(self) -> None:
        self._models: dict[str, LoadedModel] = {}
        self._embedders: dict[str, EmbeddingModel] = {}
        self._leaving: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        yield from self._models
        yield from self._embedders

    def __contains__(self, model_id: object) -> bool:
        return model_id in self._models or model_id in self._embedders

    def find(self, model_id: str) -> LoadedModel | EmbeddingModel | None:
        """The model, whether it is leaving or not."""
        return self._models.get(model_id) or self._embedders.get(model_id)

    def tokenizing(self, model_id: str) -> LoadedModel | EmbeddingModel:
        """A model of either kind, for something new. Raises `ModelNotLoaded`, which lists what is loaded."""
        model = self.find(model_id)
        if model is None or model_id in self._leaving:
            raise ModelNotLoaded(f"Model {model_id} is not loaded", model=model_id, loaded=sorted(self))
        return model

    def get(self, model_id: str) -> LoadedModel:
        """A model that writes text. Raises `InvalidRequest` for another one, too."""
        model = self.tokenizing(model_id)
        if isinstance(model, EmbeddingModel):
            does = "scores texts" if model.plan.pooling is None else "makes embeddings"
            raise InvalidRequest(f"The model {model_id} {does}; it writes no text", field="model", given=model_id)
        return model

    def embedder(self, model_id: str) -> EmbeddingModel:
        """A model that makes vectors. Raises `InvalidRequest` for another one, too."""
        model = self.tokenizing(model_id)
        if isinstance(model, LoadedModel):
            raise InvalidRequest(
                f"The model {model_id} writes text, and makes no embeddings unless its pooling is configured "
                "(models.served[].pooling)",
                field="model",
                given=model_id,
            )
        return model

    def find_base(self, key: str) -> Base | None:
        """The weights with this key, if any model has them."""
        bases = (model.base for model in self._models.values())
        return next((base for base in bases if base is not None and base.key == key), None)

    def snapshot(self) -> LoadedModels:
        """A copy, for another thread."""
        copy = LoadedModels()
        copy._models, copy._embedders = dict(self._models), dict(self._embedders)
        copy._leaving = set(self._leaving)
        return copy

    def add(self, model: LoadedModel) -> None:
        self._models[model.model_id] = model

    def add_embedder(self, model: EmbeddingModel) -> None:
        self._embedders[model.model_id] = model

    def is_leaving(self, model_id: str) -> bool:
        return model_id in self._leaving

    def leave(self, model_id: str) -> None:
        self._leaving.add(model_id)

    def remove(self, model_id: str) -> None:
        self._models.pop(model_id, None)
        self._embedders.pop(model_id, None)
        self._leaving.discard(model_id)
