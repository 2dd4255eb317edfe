"""Progress of a download, taken from the progress bars that huggingface_hub would draw."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlx_serving.catalog.progress import OnProgress, Progress

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm


class _StoppedError(Exception):
    """Another transfer of the same download failed."""


class TransferProgress:
    """Adds up the bytes of all files of one download and reports the sum, never more than one report at a time."""

    def __init__(self, item: str, *, total: int, done: int, on_progress: OnProgress) -> None:
        self._item = item
        self._total = total
        self._done = done
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._stopped = False
        self.callback_error: BaseException | None = None
        self._report()

    def stop(self) -> None:
        """Make every transfer end with its next piece."""
        self._stopped = True

    def add(self, count: int) -> None:
        """`count` bytes more; negative when a transfer starts anew. Raises what the callback raises."""
        with self._lock:
            if self._stopped:
                raise _StoppedError
            self._done += count
            try:
                self._report()
            except BaseException as error:
                self.callback_error = error
                self._stopped = True
                raise

    def _report(self) -> None:
        self._on_progress(Progress("downloading", self._done, self._total, self._item))

    def bar_class(self) -> type[_Bar]:
        """A class that huggingface_hub can use in place of tqdm for one file."""
        transfer = self

        class Bar(_Bar):
            def _add(self, count: int) -> None:
                transfer.add(count)

        return Bar


class _Bar:
    """The part of tqdm's interface that `hf_hub_download` uses, drawing nothing.

    With `update_transfer` present, the library reports bytes from the network there and bytes written to the file to
    `update`; only the latter add up to the file's size.
    """

    def __init__(self, *_: object, total: int | None = None, initial: int = 0, **__: object) -> None:
        self.total = total
        self.n = 0
        if initial:  # what an interrupted download left
            self.update(initial)

    def _add(self, count: int) -> None:
        raise NotImplementedError

    def update(self, n: float | None = 1) -> None:
        self.n += int(n or 0)
        self._add(int(n or 0))

    def update_transfer(self, n: float | None = 1) -> None:
        pass

    def set_postfix_str(self, *_: object, **__: object) -> None:
        pass

    def set_transfer_postfix_str(self, *_: object, **__: object) -> None:
        pass

    def refresh(self, *_: object, **__: object) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


def silent_bar() -> type[tqdm]:
    """A tqdm class that never draws."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args: object, disable: bool | None = True, **kwargs: object) -> None:
            super().__init__(*args, disable=True, **kwargs)

    return Silent
