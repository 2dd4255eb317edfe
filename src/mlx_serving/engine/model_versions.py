"""Which version of a model its name means now: what must be the same for an answer to be given again."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlx_serving.engine.pooled_models import PooledModels
from mlx_serving.errors import ModelNotFound
from mlx_serving.wire.methods import LoadModelResult

_SOFTWARE = ("mlx-serving", "mlx", "mlx-lm", "transformers")


class ModelVersions:
    """`settings` is what the workers were told of defaults, in any words; None while some of them were told otherwise,
    and then no answer belongs to a version."""

    def __init__(self, models: PooledModels, settings: str | None) -> None:
        self.settings = settings
        self._models = models
        self._software = " ".join(f"{name} {_installed(name)}" for name in _SOFTWARE)
        # By identity: the facts of a load are a value of their own, and what was on disk then belongs to it.
        self._files: dict[int, tuple[LoadModelResult, str]] = {}

    def configured(self, name: str) -> str:
        """What the name is configured to mean, loaded or not."""
        try:
            return f"{self._models.spec(name)!r} {self.settings}"
        except ModelNotFound:
            return ""

    def loaded(self, name: str) -> str | None:
        """The version that answers, down to the size and time of its files when they were loaded; None when there is
        none."""
        facts = self._models.facts(name)
        if self.settings is None or not facts:
            return None
        files = sorted({self._files_of(each) for each in facts})
        told = "\n".join((self.configured(name), self._software, *files))
        return hashlib.sha256(told.encode()).hexdigest()

    def _files_of(self, facts: LoadModelResult) -> str:
        known = self._files.get(id(facts))
        if known is not None and known[0] is facts:
            return known[1]
        told = f"{facts.config_digest} {facts.quantization} {facts.dtype} {facts.context_length} "
        told += f"{facts.kv_bits} {facts.kv_group_size} "
        told += " ".join(_stamps(Path(facts.cached_path)))
        alive = {id(each) for each in self._models.all_facts()}
        self._files = {key: value for key, value in self._files.items() if key in alive}
        self._files[id(facts)] = (facts, told)
        return told


def _stamps(path: Path) -> list[str]:
    """Where a model is, and how each of its files looks from outside."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stamps = [str(path.resolve())]
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue  # a link that leads nowhere
        stamps.append(f"{file.name} {status.st_size} {status.st_mtime_ns} {status.st_ino}")
    return stamps


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
