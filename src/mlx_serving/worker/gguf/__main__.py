"""`python -m mlx_serving.worker.gguf SOURCE DESTINATION`: convert a GGUF file to a model directory.

With `--json-progress`, stdout carries the lines that `mlx_serving.catalog.conversion` describes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import assert_never, get_args

import msgspec

from mlx_serving.catalog.conversion import ConversionFailure, ConversionLine, ConversionProgress, Precision
from mlx_serving.catalog.progress import OnProgress, Progress
from mlx_serving.errors import EngineError, ModelLoadError


def main(arguments: list[str] | None = None) -> int:
    """Convert; returns the exit status, 0 or 1."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_serving.worker.gguf", description="Convert a GGUF file to a directory that mlx-lm loads."
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the GGUF file")
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="the directory to make")
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="what weights become; default: the fastest on this machine"
    )
    parser.add_argument("--json-progress", action="store_true", help="write progress and errors as JSON lines")
    options = parser.parse_args(arguments)
    report = _json_line if options.json_progress else _text_line
    try:
        # Imported here: MLX takes a moment, and its absence is an error to report like any other.
        from mlx_serving.worker.gguf.convert import convert

        convert(options.source, options.destination, _reporting(report), options.precision)
    except EngineError as error:
        report(_failure(error))
        return 1
    except Exception as error:  # noqa: BLE001  the last place where a failure can become a message for the parent
        report(_failure(ModelLoadError(f"{options.source} cannot be converted: {type(error).__name__}: {error}")))
        return 1
    return 0


def _reporting(report: Callable[[ConversionLine], None]) -> OnProgress:
    def on_progress(progress: Progress) -> None:
        report(ConversionProgress(progress.done, progress.total, progress.item))

    return on_progress


def _failure(error: EngineError) -> ConversionFailure:
    return ConversionFailure(error.code, error.message, error.details)


def _json_line(line: ConversionLine) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line, enc_hook=str) + b"\n")
    sys.stdout.buffer.flush()


def _text_line(line: ConversionLine) -> None:
    match line:
        case ConversionProgress(done, total, item):
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{item}: {done / max(total, 1):4.0%}{'' if done < total else chr(10)}")
        case ConversionFailure(message=message):
            sys.stderr.write(f"error: {message}\n")
        case _:
            assert_never(line)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
