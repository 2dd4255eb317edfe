"""What SIGHUP means: reload, as daemons do; but stop, when it says that the terminal we were started from is gone."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import termios
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress

from mlx_serving.errors import EngineError


@contextmanager
def on_hangup(reload: Callable[[], Awaitable[object]]) -> Generator[None]:
    """Call `reload` at every SIGHUP until the block ends. What goes wrong it has told itself.

    Signals that come while it runs are one signal after it.
    """
    loop = asyncio.get_running_loop()
    at_terminal = sys.stderr.isatty()
    wanted = asyncio.Event()

    def hear() -> None:
        if at_terminal and _is_gone(sys.stderr.fileno()):
            _write_nowhere()
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            wanted.set()

    async def obey() -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            with suppress(EngineError):
                await reload()

    task = asyncio.create_task(obey(), name="reload")
    loop.add_signal_handler(signal.SIGHUP, hear)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        task.cancel()


def _is_gone(terminal: int) -> bool:
    """Whether this was a terminal; what never was one is not gone."""
    try:
        termios.tcgetattr(terminal)
    except termios.error as error:
        return error.args[0] == errno.EIO
    return False


def _write_nowhere() -> None:
    """Whatever is still said fails at a terminal that is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_gone(stream.fileno()):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
