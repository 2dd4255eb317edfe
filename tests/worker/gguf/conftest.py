from __future__ import annotations

from pathlib import Path

import pytest

from .tiny_llama import TinyLlama


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid file, not to be changed."""
    return TinyLlama().write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
