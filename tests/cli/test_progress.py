from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from mlx_serving.catalog.progress import OnProgress, Progress
from mlx_serving.catalog.reference import Reference
from mlx_serving.cli import progress
from mlx_serving.errors import Aborted

from ..command_line import LIMIT_S


def _nothing_is_here(_reference: Reference) -> None:
    return None


async def test_ctrl_c_during_a_preparation_ends_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    began, ended = threading.Event(), threading.Event()

    def endless(_reference: Reference, on_progress: OnProgress) -> Path:
        try:
            while True:
                on_progress(Progress("downloading", 1, 0, "a model"))
                began.set()
        except Aborted:
            ended.set()
            raise

    monkeypatch.setattr(progress, "locate", _nothing_is_here)
    monkeypatch.setattr(progress, "prepare", endless)
    preparing = asyncio.create_task(progress.prepare_showing("smollm2-135m"))
    assert await asyncio.to_thread(began.wait, LIMIT_S)
    preparing.cancel()  # what asyncio does at a Ctrl-C
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert await asyncio.to_thread(ended.wait, LIMIT_S)


async def test_at_a_pipe_one_line_says_that_it_may_take_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def at_once(_reference: Reference, _on_progress: OnProgress) -> Path:
        return tmp_path

    monkeypatch.setattr(progress, "locate", _nothing_is_here)
    monkeypatch.setattr(progress, "prepare", at_once)
    assert await progress.prepare_showing("smollm2-135m") == tmp_path
    assert capsys.readouterr().err == "preparing smollm2-135m (once)\n"


async def test_a_model_that_is_here_is_not_spoken_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def here(_reference: Reference) -> Path:
        return tmp_path

    monkeypatch.setattr(progress, "locate", here)
    assert await progress.prepare_showing("smollm2-135m") == tmp_path
    assert capsys.readouterr().err == ""
