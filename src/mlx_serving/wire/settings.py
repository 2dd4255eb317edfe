"""What the supervisor tells a worker when it starts it: one JSON object on the command line."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mlx_serving.core.memory_budget import MemoryPolicy
from mlx_serving.core.prefix.disk import DiskPolicy
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.sampling_defaults import SamplingDefaults
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.errors import InvalidConfig
from mlx_serving.wire.framing import DEFAULT_MAX_MESSAGE_BYTES

Positive = Annotated[int, msgspec.Meta(ge=1)]


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`restart_count` is how often the supervisor has replaced this worker; `kv_share` is the part of its memory for KV
    caches that it may use, after others have died for want of memory; `device_sharers` workers, this one included,
    share its device and that one's memory. Without a `prefix_folder`, an absolute path, nothing is kept on disk."""

    max_message_bytes: Positive = DEFAULT_MAX_MESSAGE_BYTES
    scheduler: SchedulerPolicy = SchedulerPolicy()
    sampling: SamplingDefaults = SamplingDefaults()
    memory: MemoryPolicy = MemoryPolicy()
    prefix_cache: PrefixCachePolicy = PrefixCachePolicy()
    prefix_disk: DiskPolicy = DiskPolicy()
    prefix_folder: str | None = None
    kv_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    device_sharers: Positive = 1
    restart_count: int = 0


def encode(settings: WorkerSettings) -> str:
    return msgspec.json.encode(settings).decode()


def decode(text: str) -> WorkerSettings:
    """Raises `InvalidConfig`."""
    try:
        return msgspec.json.decode(text, type=WorkerSettings)
    except msgspec.MsgspecError as error:
        raise InvalidConfig(f"The worker's settings are invalid: {error}") from error
