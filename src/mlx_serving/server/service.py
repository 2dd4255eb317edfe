"""What all routes share: the engine, the settings and the generations in flight."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_serving.core.response_store import StorePolicy
from mlx_serving.core.serving import ServedModel
from mlx_serving.errors import ModelNotFound
from mlx_serving.server.http.in_flight import InFlight
from mlx_serving.server.http.keep_alive import KeepAlive
from mlx_serving.server.keys.ring import KeyRing, KeySettings
from mlx_serving.server.ports import ServingEngine
from mlx_serving.server.reload import Reloader
from mlx_serving.server.responses.stored import StoredResponses
from mlx_serving.server.resume.handover import Handover
from mlx_serving.server.settings import ServerSettings


@dataclass(slots=True)
class Service:
    """`settings` may be others from one request to the next. `reloader` reads them again, if it is known whence.
    `handover` is there if unfinished requests shall outlive this server. `keys` are those with limits of
    their own, `responses` the answers of /v1/responses that are kept."""

    engine: ServingEngine
    settings: ServerSettings
    in_flight: InFlight
    reloader: Reloader | None = None
    handover: Handover | None = None
    keys: KeyRing = field(default_factory=lambda: KeyRing(KeySettings()))
    responses: StoredResponses = field(default_factory=lambda: StoredResponses(StorePolicy()))

    @property
    def keep_alive(self) -> KeepAlive:
        """When the streams of this server get comments."""
        return KeepAlive(self.settings.keepalive_s, self.engine.progress)

    def default_model(self) -> ServedModel | None:
        """The one in the settings, else the engine's own choice, else the only one there is."""
        served = self.engine.served_models()
        if self.settings.default_model is not None:
            return next((model for model in served if model.name == self.settings.default_model), None)
        chosen = next((model for model in served if model.default), None)
        return served[0] if chosen is None and len(served) == 1 else chosen

    def context_length(self, name: str) -> int | None:
        """Tokens that the context of a model holds; None while that is not known."""
        return next((each.context_length for each in self.engine.served_models() if each.name == name), None)

    def model(self, name: str | None) -> ServedModel:
        """The served model of that name, the default for none. Raises `ModelNotFound`, which lists what is served."""
        served = self.engine.served_models()
        model = next((each for each in served if each.name == name), None) if name else self.default_model()
        if model is not None:
            return model
        names = [each.name for each in served]
        listed = ", ".join(names) or "no model"
        if name:
            raise ModelNotFound(f"The model {name!r} is not served here; served: {listed}", model=name, served=names)
        wanted = self.settings.default_model
        reason = "there is no default" if wanted is None else f"the default, {wanted!r}, is not served"
        raise ModelNotFound(f"The request names no model and {reason}; served: {listed}", served=names)
