from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import pytest_asyncio

from mlx_serving.engine.engine_core import EngineCore

from ..loop_errors import no_loop_errors
from .harness import running, serving


@pytest.fixture(autouse=True)
def loop_stays_quiet() -> Generator[None]:
    with no_loop_errors():
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_core(tiny_model: Path) -> AsyncGenerator[EngineCore]:
    async with running(serving(tiny_model)) as core:
        yield core


@pytest.fixture
def core(session_core: EngineCore) -> EngineCore:
    """An engine that tests share: it serves `tiny`, and its worker must survive the test."""
    return session_core
