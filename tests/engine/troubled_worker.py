"""A worker that has the troubles it is ordered to have, and tells what it is doing.

Orders are files in the directory that the variable `TROUBLE` names:

    truncate   write half of the next frame and die, as by SIGKILL
    corrupt    leave some bytes out of the next frame and go on
    garbage    write the content of the file, which is nonsense, before the next frame and go on
    deaf       stop reading the pipe for so many seconds as the file says
    slow-disk  take so many seconds longer for each piece of a model's weights, as long as the file is there
    no-memory  fail the next step as MLX does when memory cannot be allocated
    dying-load die, as by SIGKILL, when half of the pieces of a model's weights are read

But for `slow-disk`, an order is taken away by who carries it out, so it is carried out once, whichever worker lives by
then. The file `doing` holds the worker's process id (8 bytes) and what it does: `s` while it starts, then `l` when a
model is loaded, `p` when prompts are computed (beside decoding or not), and `d` when it only decodes.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

VARIABLE = "TROUBLE"
_FRAME_MARK = 0xC1
_NEWS = struct.Struct("=Qc")


class Trouble:
    """The orders and the news in a directory; the worker's end and that of whoever gives the orders."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        news = directory / "doing"
        if not news.exists():
            news.write_bytes(_NEWS.pack(0, b"-"))
        with news.open("r+b") as file:
            self._news = mmap.mmap(file.fileno(), _NEWS.size)

    @property
    def news(self) -> tuple[int, str]:
        """The worker's process id, and what it does."""
        pid, doing = _NEWS.unpack(self._news)
        return pid, doing.decode()

    def tell(self, doing: str) -> None:
        self._news[:] = _NEWS.pack(os.getpid(), doing.encode())

    def order(self, name: str, content: bytes | str = b"") -> None:
        draft = self._directory / f"{name}.draft"
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.rename(self._directory / name)

    def is_ordered(self, name: str) -> bool:
        return (self._directory / name).exists()

    def cancel(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def take(self, name: str) -> bytes | None:
        """The content of an order that is to be carried out now, once."""
        content = self.read(name)
        if content is not None:
            self.cancel(name)
        return content

    def as_python(self) -> str:
        """An executable that runs this file whatever module it is asked for; give it as the worker's Python."""
        script = self._directory / "python"
        command = f'shift 2\nexport {VARIABLE}="{self._directory}"\nexec "{sys.executable}" "{__file__}" "$@"\n'
        script.write_text(f"#!/bin/sh\n{command}")
        script.chmod(0o755)
        return str(script)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _trouble_the_pipe(trouble: Trouble) -> None:
    from mlx_serving.worker import pipe

    write_healthy, read_healthy = pipe.Outbox._write, pipe.start_reader  # pyright: ignore[reportPrivateUsage]

    def write(self: pipe.Outbox, data: bytes) -> None:
        if data[0] == _FRAME_MARK:
            if trouble.take("truncate") is not None:
                write_healthy(self, data[: len(data) // 2])
                _die()
            if trouble.take("corrupt") is not None:
                third = len(data) // 3
                data = data[:third] + data[third + 5 :]
            if (nonsense := trouble.take("garbage")) is not None:
                data = nonsense + data
        write_healthy(self, data)

    def start_reader(fd: int, max_message_bytes: int, deliver: Callable[[Any], None]) -> None:
        def deliver_late(message: Any) -> None:
            if (seconds := trouble.take("deaf")) is not None:
                time.sleep(float(seconds))
            deliver(message)

        read_healthy(fd, max_message_bytes, deliver_late)

    pipe.Outbox._write = write  # pyright: ignore[reportPrivateUsage]
    pipe.start_reader = start_reader


def _trouble_the_loader(trouble: Trouble) -> None:
    from mlx_serving.worker.loading import small_files, weights

    find_healthy, read_healthy = small_files.find_directory, weights._evaluate  # pyright: ignore[reportPrivateUsage]
    weights._EVAL_BYTES = 16 << 10  # pyright: ignore[reportPrivateUsage]  a small model has several pieces as well

    def find(*arguments: Any) -> Path:
        trouble.tell("l")
        return find_healthy(*arguments)

    pieces = 0

    def read(arrays: list[Any]) -> None:
        nonlocal pieces
        pieces += 1
        if (seconds := trouble.read("slow-disk")) is not None:
            time.sleep(float(seconds))
        if pieces > 1 and trouble.take("dying-load") is not None:
            _die()
        read_healthy(arrays)

    small_files.find_directory, weights._evaluate = find, read  # pyright: ignore[reportPrivateUsage]


def _trouble_the_steps(trouble: Trouble) -> None:
    from mlx_serving.worker.batch import Token
    from mlx_serving.worker.model_runner import ModelRunner

    run_healthy = ModelRunner.run

    def run(self: ModelRunner, decode: Collection[str], prefill: Sequence[Any], ending: Collection[str]) -> list[Token]:
        trouble.tell("p" if prefill else "d")
        if trouble.take("no-memory") is not None:
            raise RuntimeError("[malloc] Unable to allocate 8589934592 bytes.")
        return run_healthy(self, decode, prefill, ending)

    ModelRunner.run = run


def _serve() -> int:
    trouble = Trouble(Path(os.environ[VARIABLE]))
    trouble.tell("s")
    from mlx_serving.worker.__main__ import main

    _trouble_the_pipe(trouble)
    _trouble_the_loader(trouble)
    _trouble_the_steps(trouble)
    return main()


if __name__ == "__main__":
    os._exit(_serve())
