"""The worker's side of `grammar_check`: a process that may die of a grammar instead of the worker."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO

from mlx_serving.errors import GuidanceError

_START_S = 60.0
_PATIENCE_S = 10.0  # the process gives up by itself after less time of the processor


class GrammarChecker:
    """For one thread. The process is started with the first grammar, and again after one that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to start the process; returns at once."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        # The worker's BLAS is of no use there.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_serving.worker.grammar.check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._is_ready = False

    def check(self, grammar: str, schema: Mapping[str, object] | None, field: str) -> str:
        """What is wrong with a grammar, and the schema it was made of; empty if nothing is.

        Raises `GuidanceError`, which names the parameter `field`, for one that takes too much time or memory.
        """
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not self._is_ready:
                self._read(process.stdout, _START_S)
                self._is_ready = True
            process.stdin.write(json.dumps([grammar, schema]).encode() + b"\n")
            process.stdin.flush()
            return self._read(process.stdout, _PATIENCE_S)
        except (OSError, ValueError):
            self.close()
            raise GuidanceError(
                f"{field} is too complex: to compile it takes too much time or memory", field=field
            ) from None

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    @staticmethod
    def _read(stream: IO[bytes], patience_s: float) -> str:
        """Raises ValueError when no whole answer comes."""
        deadline = time.monotonic() + patience_s
        answer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ValueError("no answer in time")
                piece = os.read(stream.fileno(), 65536)
                if not piece:
                    raise ValueError("the process is gone")
                answer += piece
        return str(json.loads(answer))
