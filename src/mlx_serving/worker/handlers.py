"""What the methods of the pipe do, one file per group of them.

All run on the thread that owns MLX; what takes long goes to the tokenizer thread and the grammar thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mlx_serving.core.sampling_defaults import SamplingDefaults
from mlx_serving.machine.blas import Blas
from mlx_serving.wire.methods import LOAD_MODEL, METHODS
from mlx_serving.worker.embedding.embeddings import Embeddings
from mlx_serving.worker.embedding.handlers import EmbedHandlers
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.heartbeat import Progress, Pulse
from mlx_serving.worker.loading.loaded_models import LoadedModels
from mlx_serving.worker.memory import MemoryGuard
from mlx_serving.worker.memory_wishes import MemoryWishes
from mlx_serving.worker.model_handlers import ModelHandlers
from mlx_serving.worker.model_runner import RunnerFactory
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.prefix.disk import PrefixDisk
from mlx_serving.worker.routes import Reply, Route, attempt
from mlx_serving.worker.runtime_handlers import RuntimeHandlers
from mlx_serving.worker.speculation.handlers import DraftHandlers
from mlx_serving.worker.speculation.pairs import DraftPairs
from mlx_serving.worker.stream_handlers import StreamHandlers
from mlx_serving.worker.telemetry import Telemetry
from mlx_serving.worker.token_handlers import TokenHandlers
from mlx_serving.worker.tokenizer_thread import TokenizerThread

_MODEL_FIELDS = ("model_id", "draft_model_id", "primary_id", "draft_id")


class Chore(Protocol):
    """Work beside the steps."""

    @property
    def is_due(self) -> bool:
        """Whether there is some that waits for nothing."""
        ...

    def work(self) -> None:
        """Do what takes no longer than a step may."""
        ...


class Handlers:
    """`routes` has every method of the wire's table by its name, `chores` is what is to be done between steps. `stop`
    ends the loop after the answer to `shutdown` is written."""

    def __init__(
        self,
        outbox: Outbox,
        generation: Generation,
        embeddings: Embeddings,
        memory: MemoryGuard,
        tokenizers: TokenizerThread,
        grammars: TokenizerThread,
        loads: TokenizerThread,
        progress: Progress,
        pulse: Pulse,
        telemetry: Telemetry,
        make_runner: RunnerFactory,
        disk: PrefixDisk | None = None,
        *,
        blas: Blas,
        restart_count: int,
        defaults: SamplingDefaults,
        load_slice_s: float,
        stop: Callable[[], None],
    ) -> None:
        self._tokenizers = tokenizers
        self._grammars = grammars
        models = LoadedModels()
        embeds = EmbedHandlers(outbox, models, embeddings, tokenizers)
        pairs = DraftPairs()
        streams = StreamHandlers(outbox, models, generation, tokenizers, grammars, defaults, embeds, pairs, disk)
        self._streams = streams
        self._models = ModelHandlers(
            outbox,
            models,
            generation,
            memory,
            streams,
            embeddings,
            embeds,
            progress,
            make_runner,
            loads,
            load_slice_s,
            disk,
        )
        wishes = MemoryWishes(outbox, memory.of_sequences)
        self.chores: Sequence[Chore] = (self._models, wishes) if disk is None else (self._models, wishes, disk)
        tokens = TokenHandlers(models, tokenizers)
        drafts = DraftHandlers(models, pairs, tokenizers)
        runtime = RuntimeHandlers(
            outbox,
            models,
            streams,
            embeds,
            self._models,
            generation,
            memory,
            pulse,
            telemetry,
            blas=blas,
            restart_count=restart_count,
            stop=stop,
        )
        groups = (runtime, self._models, streams, embeds, tokens, drafts)
        self.routes: dict[str, Route[Any, Any]] = {
            route.method.name: self._in_order(route) for group in groups for route in group.routes()
        }
        assert self.routes.keys() == {method.name for method in METHODS}

    @property
    def owes_answers(self) -> bool:
        """Whether requests are being tokenized, their grammars compiled, what is kept of them read, or models loaded:
        work that no step shows yet."""
        threads = (self._tokenizers, self._grammars)
        return self._streams.opening > 0 or self.is_loading or any(thread.pending > 0 for thread in threads)

    @property
    def is_loading(self) -> bool:
        """Whether models are being loaded, on whatever thread."""
        return len(self._models.loads) > 0

    def _in_order(self, route: Route[Any, Any]) -> Route[Any, Any]:
        """What is asked of a model that is being loaded is done when it is there."""
        names = [name for name in _MODEL_FIELDS if name in route.method.params.__struct_fields__]
        if route.method is LOAD_MODEL or not names:
            return route

        def handle(params: Any, reply: Reply[Any]) -> None:
            loads = self._models.loads
            awaited = next((model_id for name in names if (model_id := getattr(params, name)) in loads), None)
            if awaited is None:
                route.handle(params, reply)
            else:
                loads.afterwards(awaited, lambda: attempt(in_order, params, reply))

        in_order = Route(route.method, handle)
        return in_order
