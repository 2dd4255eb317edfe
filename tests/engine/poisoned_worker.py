"""A worker that aborts, as Metal does, when it computes a prompt that holds the marker token."""

from __future__ import annotations

import os
import sys
from pathlib import Path

MARKER = 7


def as_python(directory: Path) -> str:
    """An executable that runs this file whatever module it is asked for; give it as the worker's Python."""
    script = directory / "python"
    script.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" "{__file__}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def _serve() -> int:
    from mlx_serving.worker.__main__ import main
    from mlx_serving.worker.job import Job
    from mlx_serving.worker.model_runner import ModelRunner
    from mlx_serving.worker.prefix.cache import Beginning

    open_healthy, admit_healthy = ModelRunner.open, ModelRunner.admit
    poisonous: set[str] = set()

    def open_any(self: ModelRunner, job: Job) -> None:
        if MARKER in job.token_ids:
            poisonous.add(job.stream_id)
        open_healthy(self, job)

    def admit(
        self: ModelRunner, stream_id: str, fork_of: str | None = None, beginning: Beginning | None = None
    ) -> None:
        if stream_id in poisonous:
            os.abort()
        admit_healthy(self, stream_id, fork_of, beginning)

    ModelRunner.open, ModelRunner.admit = open_any, admit
    return main()


if __name__ == "__main__":
    os._exit(_serve())
