"""What a person may write for a model, and what it stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mlx_serving.catalog.aliases import ALIASES, DIRECTORIES
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.errors import InvalidRequest, ModelNotFound

MAX_PATH_LENGTH = 4096
MAX_HUB_ID_LENGTH = 512
MAX_REVISION_LENGTH = 256

# The hub's own rules: a name starts and ends with a letter, a digit or an underscore.
_HUB_NAME = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_REVISION = re.compile(r"\w[\w./+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Alias:
    """A name from the table of `aliases`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An existing GGUF file, as an absolute path."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """An existing directory with a config.json, as an absolute path."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """`organisation/name` at the Hugging Face hub. A `revision` of None is the repository's default branch."""

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id} at {self.revision}"


Reference: TypeAlias = Alias | GgufFile | ModelDirectory | HubRepository


def parse_reference(text: str, revision: str | None = None) -> Reference:
    """Understand what somebody wrote for a model.

    In this order: an alias; what looks like a path (it starts with `/`, `~` or `.`, has more than one `/`, or ends in
    `.gguf`); a directory with a config.json relative to the working directory; a hub id `organisation/name`.

    Raises `InvalidRequest` for text that can be no reference and for a `revision` of something that has none,
    `ModelNotFound` for a path that does not lead to a model and for a name that is no alias.
    """
    text = text.strip()
    if not text:
        raise InvalidRequest("the model must not be empty", field="model", given=text)
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InvalidRequest("the model must not contain control characters", field="model", given=text[:100])
    reference = _parse(text, revision)
    if revision is not None and not isinstance(reference, HubRepository):
        raise InvalidRequest(
            f"a revision is for repositories of the hub; {text!r} has none", field="revision", given=revision
        )
    return reference


def looks_local(text: str) -> bool:
    """Whether `parse_reference` takes it for a path, there or not."""
    text = text.strip()
    return text not in ALIASES and (_is_path(text) or _is_file(Path(text) / "config.json"))


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", ".")) or text.count("/") > 1 or text.lower().endswith(".gguf")


def _parse(text: str, revision: str | None) -> Reference:
    if text in ALIASES or text in DIRECTORIES:
        return Alias(text)
    if _is_path(text):
        return _local(text)
    directory = Path(text)
    if _is_file(directory / "config.json"):
        return ModelDirectory(directory.absolute())
    if "/" not in text:
        raise _unknown_name(text)
    return _hub_repository(text, revision)


def _local(text: str) -> GgufFile | ModelDirectory:
    if len(text) > MAX_PATH_LENGTH:
        raise InvalidRequest(
            f"the path of a model has at most {MAX_PATH_LENGTH} characters, got {len(text)}",
            field="model",
            limit=MAX_PATH_LENGTH,
            given=len(text),
        )
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:  # a home directory that nobody has
        raise _not_found(text, f"{text!r} starts with the home directory of a user that does not exist") from None
    if _is_file(path):
        return _file(text, path)
    if not _is_directory(path):
        raise _missing(text, path)
    if not _is_file(path / "config.json"):
        raise _no_model_directory(text, path)
    return ModelDirectory(path)


def _file(text: str, path: Path) -> GgufFile:
    if path.suffix.lower() == ".gguf":
        return GgufFile(path)
    raise InvalidRequest(
        f"{path} is a file, but no GGUF file (its name would end in .gguf); "
        "a model is a directory with a config.json or a GGUF file",
        field="model",
        given=text,
    )


def _missing(text: str, path: Path) -> ModelNotFound:
    try:
        suggestion = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        return _not_found(text, f"{path} does not exist, nor does a readable directory {path.parent}")
    hint = f"; did you mean {path.parent / suggestion}?" if suggestion else ""
    return _not_found(text, f"{path} does not exist{hint}")


def _no_model_directory(text: str, path: Path) -> ModelNotFound:
    try:
        gguf = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() == ".gguf")
    except OSError as error:
        return _not_found(text, f"{path} cannot be read: {error.strerror}")
    hint = f"; it holds GGUF files, name one of them: {', '.join(gguf[:5])}" if gguf else ""
    return _not_found(text, f"{path} is a directory without a config.json{hint}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a part of the path is too long or may not be entered
        return False


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _unknown_name(text: str) -> ModelNotFound:
    aliases = sorted((*ALIASES, *DIRECTORIES))
    suggestion = did_you_mean(text, aliases)
    return _not_found(
        text,
        f"{text!r} is no alias (there is {', '.join(aliases)}), no directory with a config.json, and no hub "
        f"id (organisation/name){f'; did you mean {suggestion!r}?' if suggestion else ''}",
    )


def _hub_repository(text: str, revision: str | None) -> HubRepository:
    if len(text) > MAX_HUB_ID_LENGTH:
        raise InvalidRequest(
            f"a hub id has at most {MAX_HUB_ID_LENGTH} characters, got {len(text)}",
            field="model",
            limit=MAX_HUB_ID_LENGTH,
            given=len(text),
        )
    names = text.split("/")
    if not all(_HUB_NAME.fullmatch(name) for name in names) or ".." in text or "--" in text:
        raise InvalidRequest(
            f"{text!r} is no hub id: organisation and name have up to 96 letters, digits, '_', '-' and '.', "
            "do not begin or end with '-' or '.', and contain neither '..' nor '--'",
            field="model",
            given=text,
        )
    if revision is not None and (
        len(revision) > MAX_REVISION_LENGTH or not _REVISION.fullmatch(revision) or ".." in revision
    ):
        raise InvalidRequest(
            f"a revision is a branch, a tag or a commit of up to {MAX_REVISION_LENGTH} letters, digits, '_', '-', "
            "'.', '+' and '/'",
            field="revision",
            limit=MAX_REVISION_LENGTH,
            given=revision[: MAX_REVISION_LENGTH + 1],
        )
    return HubRepository(text, revision)


def _not_found(text: str, message: str) -> ModelNotFound:
    return ModelNotFound(message, model=text)
