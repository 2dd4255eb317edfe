"""What the HTTP server needs of the engine behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mlx_serving.core.alias_table import AliasView
from mlx_serving.core.generation import Backend, ChatPrompt
from mlx_serving.core.model_profile import NO_PROFILE, ModelProfile
from mlx_serving.core.serving import EngineTelemetry, HealthReport, ReuseStats, ServedModel
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.wire.methods import TokenizeResult


class ServingEngine(Backend, Protocol):
    """A Backend that knows which models it serves. `GenerationRequest.model` is the name of one of them."""

    def served_models(self) -> Sequence[ServedModel]:
        """The models that clients may name, in the order they were configured."""
        ...

    async def health(self) -> HealthReport:
        """How things stand now; answers at once, also while the worker does not."""
        ...

    def progress(self) -> int:
        """A count that rises as long as the work on requests gets on."""
        ...

    async def telemetry(self) -> EngineTelemetry:
        """Load, work and memory now; answers soon, also while the worker does not."""
        ...

    async def load_served(
        self,
        reference: str,
        *,
        name: str | None,
        revision: str | None,
        replace: bool = False,
        weights: WeightOptions | None = None,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> ServedModel:
        """Load a model and serve it under `name`, by default a name made from its reference and its adapter. `weights`
        say in which form, `pinned` and `keep_alive_s` (seconds, negative for ever) how it stays in memory; None is as
        configured for the name, or as they are.

        `replace` has it take over a name that is in use, with the streams under it. Raises `InvalidRequest` for a name
        that is taken by another model otherwise, `ModelNotFound`, `ModelLoadError`.
        """
        ...

    def list_aliases(self) -> Sequence[AliasView]:
        """What names mean that are no models' own."""
        ...

    async def set_alias(
        self, name: str, model: str, *, revision: str | None = None, profile: ModelProfile = NO_PROFILE
    ) -> AliasView:
        """Have a name mean another model, once that is loaded. Raises `InvalidRequest`, `ModelNotFound`,
        `ModelLoadError`; then the name means what it meant."""
        ...

    async def roll_back_alias(self, name: str) -> AliasView | None:
        """Have a name mean what it meant before; None when that is the model of that name. Raises the same, and
        `NotFound`."""
        ...

    def remove_alias(self, name: str) -> None:
        """Forget what was set. Raises `NotFound`, and `InvalidRequest` for what is only configured."""
        ...

    async def unload_served(self, name: str, *, force: bool) -> None:
        """Unload a served model; `force` ends the streams that use it.

        Raises `ModelNotFound`, and `InvalidRequest` while it is in use and `force` is not given.
        """
        ...

    async def tokenize(self, name: str, text: str, *, add_special_tokens: bool = True) -> TokenizeResult:
        """Text to the ids of a model, which is loaded if need be. Raises what a generation raises at entry."""
        ...

    async def tokenize_chat(self, name: str, prompt: ChatPrompt) -> TokenizeResult:
        """The same of the prompt that the model's template makes of a conversation. Raises `InvalidRequest` for what
        the template refuses."""
        ...

    async def detokenize(self, name: str, token_ids: Sequence[int]) -> str:
        """Ids to text, special tokens included. Raises `InvalidRequest` for ids that the model does not have."""
        ...

    def reuse(self) -> ReuseStats:
        """What was computed once for several requests."""
        ...

    async def clear_responses(self) -> int:
        """Forget the answers that are kept; returns how many there were."""
        ...

    async def restart_workers(self) -> None:
        """Replace the workers, one after the other; what is in flight goes on. Raises `WorkerDied` when one does not
        come back."""
        ...
