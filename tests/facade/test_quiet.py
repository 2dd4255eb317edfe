"""A program that embeds the engine owns its terminal: on the good path nothing of ours appears on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ASYNC = """
import asyncio
from mlx_serving import Engine

async def main():
    async with Engine({config!r}) as engine:
        await engine.load_model("tiny")
        await engine.generate({{"model": "tiny", "prompt": "Hello", "max_tokens": 5}})
        async for chunk in engine.create_generator({{"model": "tiny", "prompt": "Hello", "max_tokens": 500}}):
            break
        await engine.tokenize({{"model": "tiny", "text": "x"}})
        await engine.unload_model("tiny")

asyncio.run(main())
"""
SYNC = """
from mlx_serving import SyncEngine

with SyncEngine({config!r}) as engine:
    engine.generate("Hello", model="tiny", max_tokens=5)
    for piece in engine.stream("Hello", model="tiny", max_tokens=500):
        break
"""


@pytest.mark.parametrize("program", [ASYNC, SYNC])
def test_a_good_program_prints_nothing_of_ours(program: str, tiny_model: Path) -> None:
    config = {"models": {"served": [{"model": str(tiny_model), "name": "tiny", "preload": False}]}}
    done = subprocess.run(
        # Not in development mode: asyncio would tell of every callback that a busy machine makes slow.
        [sys.executable, "-W", "error", "-c", program.format(config=config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
