from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import pytest_asyncio

from mlx_serving import Engine

from ..loop_errors import no_loop_errors
from .embedding import configuration


@pytest.fixture(autouse=True)
def loop_stays_quiet() -> Generator[None]:
    with no_loop_errors():
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_engine(tiny_model: Path) -> AsyncGenerator[Engine]:
    async with Engine(configuration(tiny_model)) as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="session")
async def engine(session_engine: Engine) -> Engine:
    """An engine that tests share, with `tiny` loaded."""
    await session_engine.load_model("tiny")
    return session_engine
