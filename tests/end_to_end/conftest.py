from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from mlx_serving.config.model_names import EMBEDDED_MODEL

from . import actor, schooled
from .served_process import ServedProcess, serving
from .tiny_server import KEYS, config_of


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory. A forced token (see `tiny_server`) makes its text predictable."""
    from ..tiny_models import make_llama  # imports MLX, which only making the model needs

    return make_llama(tmp_path_factory.mktemp("models") / "tiny", context_length=100_000)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[ServedProcess]:
    """A server as a new user starts it: the embedded model and no configuration."""
    async with serving(tmp_path_factory.mktemp("embedded"), "--model", EMBEDDED_MODEL) as served:
        yield served


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def school(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[ServedProcess]:
    """A server of the embedded model as `schooled` configures it."""
    async with serving(tmp_path_factory.mktemp("school"), keys=schooled.KEYS, config=schooled.config()) as served:
        yield served


@pytest.fixture(scope="session")
def actor_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of `actor`."""
    return actor.make(tmp_path_factory.mktemp("models") / "actor")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tiny(
    tmp_path_factory: pytest.TempPathFactory, random_llama: Path, actor_model: Path
) -> AsyncGenerator[ServedProcess]:
    """A server as an operator configures it: `tiny_server.config_of`, `actor`, an API key and an admin key."""
    config = config_of(random_llama, also={"actor": actor_model})
    async with serving(tmp_path_factory.mktemp("tiny"), keys=KEYS, config=config) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="session")
async def client(tiny: ServedProcess) -> AsyncGenerator[AsyncOpenAI]:
    async with tiny.openai() as opened:
        yield opened
