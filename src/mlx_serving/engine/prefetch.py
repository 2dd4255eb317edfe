"""Has the system read the files of the model that is likely to be wanted next, before anybody wants it: the shell
around `core.switches`.

It goes into the page cache only, which belongs to nobody: a wrong guess takes no memory that a model could have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil

from mlx_serving.core.switches import Switches, SwitchPolicy
from mlx_serving.machine import page_cache
from mlx_serving.telemetry.events import EventBus, ModelPrefetched
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.engine")

_SPARE = 0.1  # of the machine's memory must be left by what is read ahead


class Prefetch:
    """`directory_of` says where the files of a model are that is not in memory, if it was loaded before."""

    def __init__(self, directory_of: Callable[[str], Path | None], events: EventBus) -> None:
        self._directory_of = directory_of
        self._events = events
        self._switches = Switches(SwitchPolicy())
        self._reading: asyncio.Task[None] | None = None
        self.enabled = True

    def used(self, model: str) -> None:
        """A request for this model has come."""
        guess = self._switches.use(model)
        if guess is None or not self.enabled or self._reading is not None:
            return
        directory = self._directory_of(guess)
        if directory is None:
            return
        self._reading = asyncio.create_task(self._read(guess, directory), name=f"prefetch {guess}")

    def forget(self, model: str) -> None:
        """It is not served any more."""
        self._switches.forget(model)

    async def close(self) -> None:
        if self._reading is not None:
            await asyncio.wait((self._reading,))

    async def _read(self, model: str, directory: Path) -> None:
        try:
            size = await asyncio.to_thread(_advise, directory)
        except OSError as error:
            _log.warning("a model could not be read ahead", model=model, message=str(error))
        else:
            if size:
                self._events.publish(ModelPrefetched(model_id=model, size_bytes=size))
        finally:
            self._reading = None


def _advise(directory: Path) -> int:
    """Bytes of the files, or 0 when memory is too short for them."""
    files = sorted(directory.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    memory = psutil.virtual_memory()
    if size > memory.available - _SPARE * memory.total:
        return 0
    for file in files:
        page_cache.advise(file)
    return size
