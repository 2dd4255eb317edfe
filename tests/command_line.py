"""`mlx-serving` as a user runs it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mlx_serving.catalog.store import CACHE_VARIABLE, cache_directory

LIMIT_S = 60.0
"""For what takes a moment at most on an idle machine."""

PREPARING_LIMIT_S = 170.0
"""For the first use of the embedded model, which converts it."""


def environment(home: Path) -> dict[str, str]:
    """Of a user whose home is empty, but for the models that were converted before."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        CACHE_VARIABLE: str(cache_directory()),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }


def command(*arguments: str) -> list[str]:
    """What a user types, of the installation that is being tested."""
    return [str(Path(sys.executable).with_name("mlx-serving")), *arguments]


def run(
    home: Path, *arguments: str, stdin: str = "", variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to its end in `home`. Whatever went wrong, nobody is shown a traceback."""
    ended = subprocess.run(
        command(*arguments),
        cwd=home,
        env={**environment(home), **(variables or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PREPARING_LIMIT_S,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    return ended
