from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from .hub_server import HubServer


@pytest.fixture
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches: of converted models, which is what this gives, and of the hub."""
    monkeypatch.setenv("MLX_SERVING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def server() -> Generator[HubServer]:
    """A hub without repositories."""
    with HubServer() as hub_server:
        thread = threading.Thread(target=hub_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub_server
        hub_server.shutdown()
        thread.join()
