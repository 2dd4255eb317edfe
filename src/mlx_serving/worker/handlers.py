"""What the methods of the pipe do, one file per group of them.

All run on the thread that owns MLX; what takes long goes to the tokenizer thread and the grammar thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_serving.core.sampling_defaults import SamplingDefaults
from mlx_serving.machine.blas import Blas
from mlx_serving.wire.methods import METHODS
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.heartbeat import Progress, Pulse
from mlx_serving.worker.loaded_models import LoadedModels
from mlx_serving.worker.memory import MemoryGuard
from mlx_serving.worker.model_handlers import ModelHandlers
from mlx_serving.worker.model_runner import RunnerFactory
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.prefix_disk import PrefixDisk
from mlx_serving.worker.routes import Route
from mlx_serving.worker.runtime_handlers import RuntimeHandlers
from mlx_serving.worker.stream_handlers import StreamHandlers
from mlx_serving.worker.telemetry import Telemetry
from mlx_serving.worker.token_handlers import TokenHandlers
from mlx_serving.worker.tokenizing import TokenizerThread


class Handlers:
    """`routes` has every method of the wire's table by its name. `stop` ends the loop after the answer to `shutdown`
    is written."""

    def __init__(
        self,
        outbox: Outbox,
        generation: Generation,
        memory: MemoryGuard,
        tokenizers: TokenizerThread,
        grammars: TokenizerThread,
        progress: Progress,
        pulse: Pulse,
        telemetry: Telemetry,
        make_runner: RunnerFactory,
        disk: PrefixDisk | None = None,
        *,
        blas: Blas,
        restart_count: int,
        defaults: SamplingDefaults,
        stop: Callable[[], None],
    ) -> None:
        self._tokenizers = tokenizers
        self._grammars = grammars
        models = LoadedModels()
        streams = StreamHandlers(outbox, models, generation, tokenizers, grammars, defaults, disk)
        self._streams = streams
        self._models = ModelHandlers(outbox, models, generation, memory, streams, progress, make_runner, disk)
        tokens = TokenHandlers(models, tokenizers)
        runtime = RuntimeHandlers(
            outbox,
            models,
            streams,
            self._models,
            generation,
            memory,
            pulse,
            telemetry,
            blas=blas,
            restart_count=restart_count,
            stop=stop,
        )
        groups = (runtime, self._models, streams, tokens)
        self.routes: dict[str, Route[Any, Any]] = {
            route.method.name: route for group in groups for route in group.routes()
        }
        assert self.routes.keys() == {method.name for method in METHODS}

    @property
    def owes_answers(self) -> bool:
        """Whether requests are being tokenized, their grammars compiled, or what is kept of them read: work that no
        step shows yet."""
        return self._tokenizers.pending > 0 or self._grammars.pending > 0 or self._streams.opening > 0

    def finish_unloading(self) -> None:
        """Drop the models that are to go and that nobody uses any more."""
        self._models.finish_unloading()
