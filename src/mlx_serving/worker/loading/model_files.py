"""Finding a model's directory, reading its files, and saying which of them is at fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.errors import EngineError, ModelLoadError
from mlx_serving.machine import page_cache
from mlx_serving.wire.methods import LoadModelParams

OnProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on, at least once a piece of work."""


@contextmanager
def blaming(part: str, model_id: str, directory: Path) -> Generator[None]:
    """What goes wrong inside becomes a `ModelLoadError` that names the part of the model that is at fault."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())  # transformers' have several lines
        raise ModelLoadError(
            f"{model_id} cannot be loaded, because of {part}: {type(error).__name__}: {reason}",
            model=model_id,
            path=str(directory),
        ) from error


def read_object(path: Path) -> Mapping[str, object]:
    """Raises what reading raises, and ValueError for JSON that is no object."""
    loaded: object = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise ValueError(f"{path.name} must hold an object, not a {type(loaded).__name__}")
    return cast("Mapping[str, object]", loaded)


def find_directory(params: LoadModelParams, on_progress: OnProgress) -> Path:
    """Where the model is, once it is there and can be loaded. Raises what `parse_reference` and `prepare` raise."""
    reference = parse_reference(params.local_path or params.model_id, params.revision)
    return prepare(reference, lambda step: on_progress(step.stage, step.done, step.total))


def read_weights_ahead(directory: Path, on_progress: OnProgress) -> None:
    """Into the page cache."""
    files = sorted(directory.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    done = 0

    def tell(count: int) -> bool:
        nonlocal done
        done += count
        on_progress("reading", done, size)
        return True

    for file in files:
        page_cache.read_into(file, tell)


def refuse_own_code(config: Mapping[str, object], model_id: str, directory: Path) -> None:
    """Raises `ModelLoadError` for a model that brings code of its own."""
    if config.get("model_file"):
        raise ModelLoadError(
            f"{model_id} cannot be loaded: its config.json names code of its own (model_file: {config['model_file']}), "
            "and code from a model's directory is never run here",
            model=model_id,
            path=str(directory),
        )
