"""Importing costs little: what is not needed yet is not imported, and MLX never in the parent."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MACHINERY = ("mlx", "mlx_lm", "transformers", "tokenizers", "torch", "numpy", "PIL")
IMPORTS = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def imported_by(module: str) -> set[str]:
    """The modules that importing `module` adds in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", IMPORTS, module], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "module",
    [
        "mlx_serving",
        "mlx_serving.cli.main",
        "mlx_serving.cli.serve",
        "mlx_serving.cli.generate",
        "mlx_serving.bench.engine_target",
        "mlx_serving.server.app",
        "mlx_serving.assembly",
        "mlx_serving.facade.engine",
        "mlx_serving.facade.sync",
    ],
)
def test_the_parent_imports_no_mlx(module: str) -> None:
    assert {name.partition(".")[0] for name in imported_by(module)}.isdisjoint(MACHINERY)


def test_importing_the_package_imports_next_to_nothing() -> None:
    modules = imported_by("mlx_serving")
    assert [name for name in modules if name.startswith("mlx_serving")] == ["mlx_serving"]
    assert modules.isdisjoint({"pydantic", "asyncio", "msgspec", "structlog", "logging", "yaml", "rich"})
    assert len(modules) < 25


def test_asking_the_command_line_for_help_imports_no_heavy_library() -> None:
    modules = imported_by("mlx_serving.cli.main")
    assert modules.isdisjoint({"pydantic", "asyncio", "rich", "fastapi", "starlette", "huggingface_hub", "yaml"})


def test_a_name_brings_only_what_it_needs() -> None:
    code = (
        "import sys, mlx_serving; mlx_serving.EngineError; print('pydantic' in sys.modules, 'asyncio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_worker_imports_no_pydantic_before_it_speaks() -> None:
    assert "pydantic" not in imported_by("mlx_serving.worker.__main__")
