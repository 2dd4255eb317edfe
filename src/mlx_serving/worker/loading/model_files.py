"""Reading the files of a model's directory, and saying which of them is at fault."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from mlx_serving.errors import EngineError, ModelLoadError


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
