"""A bench whose prefixes are also kept on disk. Leaving the block writes what waits, as the end of a worker does."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlx_serving.catalog.prefix_records import SUFFIX
from mlx_serving.core.generation import SamplingParams
from mlx_serving.core.prefix.disk import DiskPolicy
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.runtime_telemetry import PrefixDiskTelemetry
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loop import Inbox
from mlx_serving.worker.prefix.disk import PrefixDisk
from mlx_serving.worker.prefix.files import PrefixFiles

from ..bench import Bench, Stream

_PATIENCE_S = 60.0
POLICY = DiskPolicy(max_bytes=1 << 30, preload_bytes=0)


class DiskBench(Bench):
    """`reports` is what the operator was told. `prefill_s` says that whatever is on disk is worth a wait, however fast
    the machine is; it can be set to something else."""

    def __init__(
        self,
        model: LoadedModel,
        folder: Path,
        disk_policy: DiskPolicy = POLICY,
        *,
        block_tokens: int = 16,
        memory_bytes: int | None = None,
    ) -> None:
        super().__init__(model, prefix_policy=PrefixCachePolicy(memory_bytes=memory_bytes, block_tokens=block_tokens))
        self.inbox = Inbox()
        self.reports: list[tuple[str, str]] = []
        self.prefill_s: Callable[[str, int, int], float] = _dear
        self.files = PrefixFiles(folder, disk_policy, self.inbox.put, self.inbox.wake, self._report)
        preload = disk_policy.preload_bytes
        self.disk = PrefixDisk(self.files, folder, self.prefixes, self._prefill_s, self.inbox.put, preload)
        self.disk.add_model(model)
        self.settle()

    def _prefill_s(self, model: str, start: int, count: int) -> float:
        return self.prefill_s(model, start, count)

    def _report(self, what: str, *, path: str, reason: str, count: int = 1) -> None:
        self.reports.append((what, reason))

    @property
    def counts(self) -> PrefixDiskTelemetry:
        return self.disk.telemetry()

    def settle(self) -> None:
        """Until the thread has done all there was, and what it had to say was heard."""
        self.disk.flush(_PATIENCE_S)
        for command in self.inbox.take(0):
            assert callable(command)
            command()
        self.disk.flush(_PATIENCE_S)

    def ask(self, prompt: Sequence[int], params: SamplingParams | None = None, *, salt: str = "") -> Stream:
        """One stream to its end; it waits for the disk before, if it is to."""
        ready: list[bool] = []
        if self.disk.read_ahead(self.model.model_id, prompt, salt, "", lambda: ready.append(True)):
            while not ready:
                for command in self.inbox.take(_PATIENCE_S):
                    assert callable(command)
                    command()
        stream = self.start("asked", prompt, params, salt=salt)
        self.finish()
        del self.streams["asked"]
        return stream


def _dear(model: str, start: int, count: int) -> float:
    return _PATIENCE_S


@contextmanager
def on_disk(
    model: LoadedModel,
    folder: Path,
    disk_policy: DiskPolicy = POLICY,
    *,
    block_tokens: int = 16,
    memory_bytes: int | None = None,
) -> Generator[DiskBench]:
    bench = DiskBench(model, folder, disk_policy, block_tokens=block_tokens, memory_bytes=memory_bytes)
    try:
        yield bench
        bench.settle()
    finally:
        bench.disk.close()


def records(folder: Path) -> list[Path]:
    """The files of all records."""
    return sorted(folder.rglob(f"[!.]*{SUFFIX}"))
