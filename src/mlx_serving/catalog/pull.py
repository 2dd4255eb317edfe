"""Bringing a model onto this machine, up to date and undamaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_serving.catalog.hub import Hub
from mlx_serving.catalog.integrity import Damage, Verdict, verify
from mlx_serving.catalog.inventory import remove_model
from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.progress import OnProgress, Progress
from mlx_serving.catalog.reference import HubRepository, ModelDirectory, Reference
from mlx_serving.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class Pulled:
    """Where the model is, and what was found of it. `repaired` are files that were damaged and were fetched or made
    anew. `outdated_reason` says why the hub could not be asked for a newer version of what was here already."""

    path: Path
    verdict: Verdict
    repaired: tuple[Damage, ...] = ()
    outdated_reason: str | None = None


def pull(reference: Reference, on_progress: OnProgress, hub: Hub | None = None) -> Pulled:
    """Download or convert a model, or bring it up to date, and verify all its files; damaged ones are replaced. Blocks.

    Raises what `prepare` and `Hub.download` raise, and `ModelLoadError` that names the files which are damaged still.
    """
    hub = hub or Hub()
    repaired: tuple[Damage, ...] = ()
    while True:
        directory, outdated_reason = _fetch(reference, on_progress, hub)
        verdict = verify(directory, lambda done, total: on_progress(Progress("verifying", done, total, str(reference))))
        if not verdict.damages:
            return Pulled(directory, verdict, repaired, outdated_reason)
        if repaired or outdated_reason is not None or isinstance(reference, ModelDirectory):
            raise _damaged(reference, verdict, outdated_reason)
        repaired = verdict.damages
        if isinstance(reference, HubRepository):
            for damage in repaired:
                hub.discard(damage.file)
        else:
            remove_model(directory.name)


def _fetch(reference: Reference, on_progress: OnProgress, hub: Hub) -> tuple[Path, str | None]:
    if not isinstance(reference, HubRepository):
        return prepare(reference, on_progress), None
    try:
        return hub.download(reference, on_progress), None
    except ModelLoadError as error:
        here = hub.find(reference)
        if here is None:
            raise
        return here, str(error.details.get("reason", error.message))


def _damaged(reference: Reference, verdict: Verdict, outdated_reason: str | None) -> ModelLoadError:
    named = "; ".join(map(str, verdict.damages[:5]))
    more = f"; and {len(verdict.damages) - 5} more" if len(verdict.damages) > 5 else ""
    why = f" It cannot be fetched anew: {outdated_reason}" if outdated_reason else ""
    return ModelLoadError(
        f"{reference} is damaged: {named}{more}.{why}",
        model=str(reference),
        damaged=[{"file": str(damage.file), "reason": damage.reason} for damage in verdict.damages],
    )
