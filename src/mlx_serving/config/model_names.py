"""What models are called when nobody names them."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

EMBEDDED_MODEL = "smollm2-135m"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def public_name(reference: str) -> str:
    """The name a model goes by when none is given.

    A hub id or an alias is its own name; a directory is called after its last part, a GGUF file after its stem.
    """
    is_file = reference.lower().endswith(".gguf")
    if _HUB_ID.fullmatch(reference) and not is_file:
        return reference
    path = PurePosixPath(reference)
    return re.sub(r"\s+", "-", (path.stem if is_file else path.name).strip()) or reference


def default_name(reference: str, adapter: str | None) -> str:
    """The name of a model with an adapter is the model's, a colon, and the adapter's directory."""
    name = public_name(reference)
    if adapter is None:
        return name
    directory = re.sub(r"\s+", "-", PurePosixPath(adapter).name)
    return f"{name}:{directory}"
