"""Where a value was set. `str()` of an origin is what people read; `spell` is how its source writes a setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

Path: TypeAlias = tuple[str, ...]
"""The way to a setting: keys, and indices of lists as decimal text. Printed with dots."""

ENV_PREFIX = "MLX_SERVING_"
ENV_SEPARATOR = "__"
NO_SETTINGS = frozenset({"config", "env", "cache", "blas", "blas_settled"})
"""Variables of ours that say where things are, and what a process told its children."""


@dataclass(frozen=True, slots=True)
class Default:
    """Nobody set it."""

    def __str__(self) -> str:
        return "default"


@dataclass(frozen=True, slots=True)
class InFile:
    """A line of the configuration file, counted from 1; `variable` is the one its `${…}` refers to."""

    file: str
    line: int
    overlay: str | None = None
    variable: str | None = None

    def __str__(self) -> str:
        place = f"overlay {self.overlay} in {self.file}" if self.overlay is not None else f"file {self.file}"
        reference = f", from ${{{self.variable}}}" if self.variable is not None else ""
        return f"{place} line {self.line}{reference}"


@dataclass(frozen=True, slots=True)
class InVariable:
    """An environment variable, spelled as it was found."""

    name: str

    def __str__(self) -> str:
        return f"env {self.name}"


@dataclass(frozen=True, slots=True)
class InFlag:
    """A command-line flag, without its value: `--port`, `--set server.port=…`."""

    flag: str

    def __str__(self) -> str:
        return f"flag {self.flag}"


Origin: TypeAlias = Default | InFile | InVariable | InFlag

DEFAULT = Default()


def dotted(path: Path) -> str:
    return ".".join(path)


def variable_name(path: Path) -> str:
    """The environment variable that sets `path`."""
    return ENV_PREFIX + ENV_SEPARATOR.join(path).upper()


def variable_path(name: str) -> Path | None:
    """The setting that the environment variable `name` means; None if it means none."""
    if not name.upper().startswith(ENV_PREFIX):
        return None
    path = tuple(name[len(ENV_PREFIX) :].lower().split(ENV_SEPARATOR))
    return None if dotted(path) in NO_SETTINGS else path


def spell(path: Path, origin: Origin) -> str:
    """How the kind of source that `origin` is would name `path`."""
    match origin:
        case InVariable():
            return variable_name(path)
        case Default() | InFile() | InFlag():
            return dotted(path)
        case _:
            assert_never(origin)
