"""The one way to get a logger: structured, and behind it the standard library's logger of the same name."""

from __future__ import annotations

import logging
from typing import cast

import structlog

LIBRARY = "mlx_serving"

# A program that does not configure logging gets none from us.
logging.getLogger(LIBRARY).addHandler(logging.NullHandler())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger below `mlx_serving` that does not depend on how, or whether, the program configured structlog."""
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.add_log_level,
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )
