from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

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


def test_at_a_terminal_a_bar_shows_what_is_done_and_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()

    def at_a_terminal(*, stderr: bool) -> Console:
        assert stderr  # stdout is for the result
        return Console(file=screen, force_terminal=True, width=100, _environ={})

    monkeypatch.setattr(progress, "Console", at_a_terminal)
    with progress.showing("measuring") as show:
        show("engine: round 1 of 3", 7, 40)
    assert "engine: round 1 of 3" in screen.getvalue()
    assert "7/40" in screen.getvalue()


def test_elsewhere_it_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.showing("measuring") as show:
        show("engine: round 1 of 3", 7, 40)
    assert capsys.readouterr() == ("", "")
