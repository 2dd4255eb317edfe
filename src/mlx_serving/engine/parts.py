"""What `assembly` puts together, and `engine_core` is made of."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_serving.core.generation import Backend
from mlx_serving.core.retry import RetryPolicy
from mlx_serving.engine.aliases import Aliases
from mlx_serving.engine.batch_queue import BatchQueue
from mlx_serving.engine.breaker import BreakerBackend
from mlx_serving.engine.images import PromptImages
from mlx_serving.engine.pooled_models import PooledModels
from mlx_serving.engine.prefetch import Prefetch
from mlx_serving.engine.recovery import RecoveryBackend
from mlx_serving.engine.response_cache import ResponseCacheBackend
from mlx_serving.engine.sharing import SharingBackend
from mlx_serving.engine.worker_pool import WorkerPool
from mlx_serving.telemetry.events import EventBus


@dataclass(frozen=True, slots=True)
class Parts:
    """`backend` is the outermost layer."""

    pool: WorkerPool
    models: PooledModels
    aliases: Aliases
    prefetch: Prefetch
    streams: RecoveryBackend
    breaker: BreakerBackend
    backend: Backend
    batch_queue: BatchQueue
    images: PromptImages
    events: EventBus
    retry: RetryPolicy
    default_model: str
    preload: tuple[str, ...]
    sharing: SharingBackend | None = None
    responses: ResponseCacheBackend | None = None
