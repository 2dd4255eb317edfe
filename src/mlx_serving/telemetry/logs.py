"""Structured logs. As a library we write to the standard library's loggers below `mlx_serving` and leave it to the
program what becomes of that; `configure` is for our own command line: stderr, readable at a terminal, JSON elsewhere.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import fields
from typing import Literal, cast

import structlog

from mlx_serving.telemetry.events import (
    CircuitChanged,
    ErrorOccurred,
    Event,
    GenerationCompleted,
    GenerationStarted,
    GenerationToken,
    MemoryShareChanged,
    ModelProgressed,
)
from mlx_serving.telemetry.logger import LIBRARY, get_logger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]


def configure(level: Level, output: Format) -> None:
    """Write our own records from `level` on, and everybody's warnings, to stderr."""
    pretty = output == "console" or (output == "auto" and sys.stderr.isatty())
    # Plain tracebacks: the rich ones show local variables, and so prompts and keys.
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer = console if pretty else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(() if pretty else (structlog.processors.format_exc_info,)),
                cast("structlog.typing.Processor", renderer),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LIBRARY).setLevel(level.upper())


_log = get_logger(LIBRARY)
_QUIET = (GenerationToken, GenerationStarted, GenerationCompleted, ModelProgressed)


def log_event(event: Event) -> None:
    """A listener for the bus: every transition is a log line; what happens per request or token is for debugging."""
    match event:
        case ErrorOccurred():
            _log.error(event.name, code=event.error.code, message=event.error.message, context=event.context)
        case CircuitChanged():
            _log.warning(event.name, previous=event.previous, current=event.current)
        case MemoryShareChanged():
            _log.warning(event.name, previous=event.previous, current=event.current, reason=event.reason)
        case _:
            write = _log.debug if isinstance(event, _QUIET) else _log.info
            write(event.name, **{item.name: getattr(event, item.name) for item in fields(event) if item.name != "at"})
