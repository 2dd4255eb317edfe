"""What asyncio would only log: exceptions that nobody retrieved, tasks destroyed while pending, failed callbacks."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator
from contextlib import contextmanager


class _Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("Executing "):
            return  # a slow callback: nothing here depends on speed
        self.lines.append(self.format(record))


@contextmanager
def no_loop_errors() -> Generator[None]:
    """Fails when an event loop, of any thread, complained while the block ran."""
    collected = _Collected()
    logger = logging.getLogger("asyncio")
    logger.addHandler(collected)
    gc.freeze()  # what was there before is not looked through again, now or later
    try:
        yield
        gc.collect()
    finally:
        logger.removeHandler(collected)
    assert collected.lines == []
