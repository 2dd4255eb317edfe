"""The worker's parts, put together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.nn as nn

from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.machine.blas import Blas
from mlx_serving.wire.methods import ModelCapabilities
from mlx_serving.wire.notifications import Notice
from mlx_serving.wire.settings import WorkerSettings
from mlx_serving.worker.embedding.embeddings import Embeddings
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.handlers import Handlers
from mlx_serving.worker.heartbeat import Progress, Pulse
from mlx_serving.worker.loop import Inbox, Loop
from mlx_serving.worker.memory import MemoryGuard
from mlx_serving.worker.memory_bounds import MemoryBounds
from mlx_serving.worker.model_runner import ModelRunner
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.prefix.cache import PrefixCache
from mlx_serving.worker.prefix.disk import PrefixDisk
from mlx_serving.worker.prefix.files import PrefixFiles
from mlx_serving.worker.telemetry import Telemetry
from mlx_serving.worker.tokenizer_thread import TokenizerThread
from mlx_serving.worker.vision.architecture import VisionText
from mlx_serving.worker.vision.features import FeatureCache
from mlx_serving.worker.vision.runner import VisionRunner


@dataclass(frozen=True, slots=True)
class Worker:
    inbox: Inbox
    outbox: Outbox
    loop: Loop
    handlers: Handlers
    disk: PrefixDisk | None


def assemble(settings: WorkerSettings, write_fd: int, blas: Blas, *, linger: bool) -> Worker:
    """Call on the thread that will run the loop: MLX belongs to the thread that first uses it."""
    bounds = MemoryBounds(settings.device_sharers)
    inbox = Inbox()
    outbox = Outbox(write_fd, on_clear=inbox.wake)
    progress = Progress()
    prefixes = PrefixCache(settings.prefix_cache)
    features = FeatureCache()
    scheduler = Scheduler(settings.scheduler, prefixes, features)
    generation = Generation(scheduler, prefixes, features)
    disk = _disk(settings, prefixes, scheduler, inbox, outbox)
    memory = MemoryGuard(
        settings.memory, settings.kv_share, scheduler.memory, generation.models, bounds.read, prefixes, features
    )
    embeddings = Embeddings(settings.scheduler, lambda: memory.plan.prefill)
    tokenizers = TokenizerThread(inbox.put)
    grammars = TokenizerThread(inbox.put, "grammar")
    loads = TokenizerThread(inbox.put, "loader")
    loop = Loop(inbox, outbox, generation, embeddings, memory, progress, linger=linger)
    handlers = Handlers(
        outbox,
        generation,
        embeddings,
        memory,
        tokenizers,
        grammars,
        loads,
        progress,
        Pulse(progress, outbox.notify),
        Telemetry(generation, tokenizers, outbox, disk, cache_limit_bytes=lambda: memory.plan.buffer_cache),
        partial(make_runner, features),
        disk,
        blas=blas,
        restart_count=settings.restart_count,
        defaults=settings.sampling,
        # The other half of the gap is for the step itself.
        load_slice_s=settings.scheduler.target_gap_s / 2,
        stop=loop.stop,
    )
    return Worker(inbox, outbox, loop, handlers, disk)


def make_runner(
    features: FeatureCache, model: nn.Module, capabilities: ModelCapabilities, padding_tokens: float, kv: KvForm | None
) -> ModelRunner:
    """See `RunnerFactory`."""
    if isinstance(model, VisionText):
        return VisionRunner(model, capabilities, padding_tokens, kv, features)
    return ModelRunner(model, capabilities, padding_tokens, kv)


def _disk(
    settings: WorkerSettings, prefixes: PrefixCache, scheduler: Scheduler, inbox: Inbox, outbox: Outbox
) -> PrefixDisk | None:
    if settings.prefix_folder is None or not settings.prefix_cache.enabled:
        return None

    def report(what: str, *, path: str, reason: str, count: int = 1) -> None:
        outbox.notify(Notice("prefix cache", what, {"path": path, "reason": reason, "count": count}))

    folder = Path(settings.prefix_folder)
    policy = settings.prefix_disk
    files = PrefixFiles(folder, policy, inbox.put, inbox.wake, report)
    return PrefixDisk(files, folder, prefixes, scheduler.prefill_s, inbox.put, policy.preload_bytes)
