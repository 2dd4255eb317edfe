"""What a person sees while models are downloaded, converted and loaded: on stderr, and only at a terminal."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from mlx_serving.catalog.prepare import locate, prepare
from mlx_serving.catalog.pull import pull
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.errors import Aborted

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_serving.catalog import progress
    from mlx_serving.catalog.progress import OnProgress
    from mlx_serving.catalog.pull import Pulled
    from mlx_serving.config.schema import Config
    from mlx_serving.telemetry.events import Event, EventBus

_T = TypeVar("_T")


def _tell_on_stderr(text: str) -> None:
    sys.stderr.write(f"preparing {text} (once)\n")


async def preparing(config: Config, tell: Callable[[str], None] = _tell_on_stderr) -> None:
    """Bring the models that are to be loaded at start onto this machine.

    `tell` is called with what is prepared where no terminal can show a bar. Raises `ModelNotFound` and
    `ModelLoadError` before anything was started.
    """
    for served in config.models.served:
        if served.preload or served.name == config.models.default:
            await prepare_showing(served.model, served.revision, tell)


async def prepare_showing(
    text: str, revision: str | None = None, tell: Callable[[str], None] = _tell_on_stderr
) -> Path:
    """Prepare one model, with a bar at a terminal, else after a call of `tell`. Returns its directory."""
    reference = parse_reference(text, revision)
    found = locate(reference)
    if found is not None:
        return found
    return await _showing_bytes(text, tell, lambda report: prepare(reference, report))


async def pull_showing(text: str, revision: str | None, tell: Callable[[str], None] = lambda text: None) -> Pulled:
    """Pull one model, with a bar at a terminal."""
    reference = parse_reference(text, revision)
    return await _showing_bytes(text, tell, lambda report: pull(reference, report))


async def _showing_bytes(text: str, tell: Callable[[str], None], work: Callable[[OnProgress], _T]) -> _T:
    console = Console(stderr=True)
    if not console.is_terminal:
        tell(text)
        return await _in_thread(work, lambda _: None)
    with Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bars:
        bar = bars.add_task(f"preparing {text}", total=None)

        def show(step: progress.Progress) -> None:
            bars.update(bar, description=f"{step.stage} {step.item}", completed=step.done, total=step.total or None)

        return await _in_thread(work, show)


@contextmanager
def showing(title: str) -> Generator[Callable[[str, int, int], None]]:
    """A bar at a terminal, nothing elsewhere. Call what this gives with what is done now, and how much of how much is
    over."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        bar = bars.add_task(title, total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total)

        yield show


ShowLoad: TypeAlias = Callable[[str, str, int, int], None]
"""What shows how far a load is: model, stage, bytes that are done, bytes in all (0: not known)."""


@contextmanager
def load_bars() -> Generator[ShowLoad | None]:
    """A bar for each model that is being loaded, at a terminal; None elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        known: dict[str, TaskID] = {}

        def show(name: str, stage: str, done: int, total: int) -> None:
            if name not in known:
                known[name] = bars.add_task(name, total=None)
            bars.update(known[name], description=f"{stage} {name}", completed=done, total=total or None)

        yield show


@contextmanager
def showing_loads(events: EventBus) -> Generator[None]:
    """The same for the models of an engine."""
    from mlx_serving.telemetry.events import ModelProgressed

    with load_bars() as show:
        if show is None:
            yield
            return

        def hear(event: Event) -> None:
            if isinstance(event, ModelProgressed):
                show(event.model_id, event.stage, event.done, event.total)

        unsubscribe = events.subscribe(hear)
        try:
            yield
        finally:
            unsubscribe()


async def _in_thread(work: Callable[[OnProgress], _T], show: OnProgress) -> _T:
    """In a thread, which a cancellation (Ctrl-C) ends too: at its next progress."""
    cancelled = threading.Event()

    def report(step: progress.Progress) -> None:
        if cancelled.is_set():
            raise Aborted("the preparation was cancelled")
        show(step)

    try:
        return await asyncio.to_thread(work, report)
    finally:
        cancelled.set()
