"""A program at a terminal, and somebody who types."""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 100.0


class Terminal:
    """`seen` is all that was on the screen; colours are left out by TERM=dumb."""

    def __init__(self, pid: int, screen: int) -> None:
        self._pid = pid
        self._screen: int | None = screen
        self._read_up_to = 0
        self._status: int | None = None
        self.seen = ""

    def expect(self, text: str) -> None:
        """Wait until that appears after what was expected last."""
        deadline = time.monotonic() + LIMIT_S
        while (at := self.seen.find(text, self._read_up_to)) < 0:
            assert self._screen is not None
            assert self._read(self._screen, deadline), f"it ended without {text!r}:\n{self.seen}"
        self._read_up_to = at + len(text)

    def type(self, text: str) -> None:
        assert self._screen is not None
        os.write(self._screen, text.encode())

    def hang_up(self) -> int:
        """Close the terminal; the exit status of the program that it takes along."""
        self.close()
        return self.ended()

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            self.ended()

    def close(self) -> None:
        if self._screen is not None:
            os.close(self._screen)
            self._screen = None

    def ended(self) -> int:
        """Read to the end; the exit status, negative for a signal."""
        deadline = time.monotonic() + LIMIT_S
        while self._screen is not None and self._read(self._screen, deadline):
            pass
        if self._status is None:
            _, status = os.waitpid(self._pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def _read(self, screen: int, deadline: float) -> bool:
        ready, _, _ = select.select([screen], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more came in time:\n{self.seen}"
        try:
            data = os.read(screen, 65536)
        except OSError:  # Linux's word for the end of a terminal
            return False
        self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        return data != b""


@contextmanager
def at_terminal(command: Sequence[str], home: Path, env: Mapping[str, str]) -> Generator[Terminal]:
    """Run a program in `home` until the block ends; the block is expected to end it."""
    pid, screen = pty.fork()
    if pid == 0:  # the child: nothing but the program may follow
        os.chdir(home)
        os.execve(command[0], list(command), {**env, "TERM": "dumb", "NO_COLOR": "1"})
    terminal = Terminal(pid, screen)
    try:
        yield terminal
        terminal.ended()
    except BaseException:
        terminal.kill()
        raise
    finally:
        terminal.close()
