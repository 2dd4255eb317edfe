"""From files, variables and flags to a `Config` that knows where each of its values was set.

    defaults < file < overlay of the file < environment variables < flags < --set

`resolve` is a pure function of what was read; `load` reads the file and calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import cast

from pydantic import ValidationError

from mlx_serving.config.assignments import Assignment, from_set_flags, from_variables
from mlx_serving.config.document import Document, choose_overlay, parse_document, with_variables
from mlx_serving.config.issues import Issue, invalid_config, issues_of
from mlx_serving.config.origin import DEFAULT, InFlag, InVariable, Origin, Path, dotted
from mlx_serving.config.reference import read_reference
from mlx_serving.config.schema import Config
from mlx_serving.config.served_models import follows
from mlx_serving.config.tree import Table, find, leaves, merge_tables, plain

_MAX_FILE_BYTES = 4 * 1024**2
FILE_VARIABLE = "MLX_SERVING_CONFIG"
OVERLAY_VARIABLE = "MLX_SERVING_ENV"
LOCAL_FILE = "mlx-serving.yaml"
USER_FILE = "mlx-serving/config.yaml"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration. `provenance` has the origin of every value of it by dotted path, and nothing else.

    `file` and `overlay` are what was read, None where nothing was.
    """

    config: Config
    provenance: Mapping[str, Origin]
    file: str | None = None
    overlay: str | None = None


def load(
    *,
    environ: Mapping[str, str],
    config_file: str | None = None,
    overlay: str | None = None,
    flags: Sequence[Assignment] = (),
    sets: Sequence[str] = (),
    directory: FilePath | None = None,
) -> Loaded:
    """Read the configuration file, if there is one, and resolve everything.

    `config_file` and `overlay` are the values of `--config` and `--env`; `directory` is where relative paths begin.
    Raises InvalidConfig with every problem.
    """
    path, asked_by = find_file(config_file, environ, directory if directory is not None else FilePath())
    document: Document | None = None
    issues: list[Issue] = []
    if path is not None:
        text, issues = _read(path, asked_by)
        if text is not None:
            document, issues = parse_document(text, str(path))
    if document is None and issues:
        raise invalid_config(issues)
    return resolve(document, issues, environ=environ, overlay=overlay, flags=flags, sets=sets)


def find_file(
    config_file: str | None, environ: Mapping[str, str], directory: FilePath
) -> tuple[FilePath | None, Origin]:
    """The file to read and who asked for it; a file that nobody asked for is optional."""
    if config_file is not None:
        return directory / config_file, InFlag("--config")
    if environ.get(FILE_VARIABLE):
        return directory / environ[FILE_VARIABLE], InVariable(FILE_VARIABLE)
    candidates = [directory / LOCAL_FILE]
    # The XDG base directory specification has relative paths ignored.
    base = FilePath(environ.get("XDG_CONFIG_HOME", ""))
    if base.is_absolute():
        candidates.append(base / USER_FILE)
    elif environ.get("HOME"):
        candidates.append(FilePath(environ["HOME"]) / ".config" / USER_FILE)
    return next((candidate for candidate in candidates if candidate.is_file()), None), DEFAULT


def _read(path: FilePath, asked_by: Origin) -> tuple[str | None, list[Issue]]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) <= _MAX_FILE_BYTES:
            return content.decode("utf-8-sig"), []
        problem, fix = f"has more than {_MAX_FILE_BYTES} bytes", "name the right file"
    except UnicodeDecodeError as error:
        problem, fix = f"is not UTF-8 text (byte {error.start})", "save it as UTF-8"
    except OSError as error:
        problem, fix = f"cannot be read: {error.strerror}", "name a file that exists and can be read"
    return None, [Issue((), f"the configuration file {path} {problem}", asked_by, suggestion=fix)]


def resolve(
    document: Document | None,
    issues: Sequence[Issue] = (),
    *,
    environ: Mapping[str, str],
    overlay: str | None = None,
    flags: Sequence[Assignment] = (),
    sets: Sequence[str] = (),
) -> Loaded:
    """Merge all layers, give them types, and note where each value comes from. `issues` are those of the document.

    Raises InvalidConfig with every problem.
    """
    problems = list(issues)
    layers: list[Table] = [] if document is None else [document.root]
    name = overlay if overlay is not None else environ.get(OVERLAY_VARIABLE) or None
    if name is not None:
        asked_by = InFlag("--env") if overlay is not None else InVariable(OVERLAY_VARIABLE)
        chosen, found = choose_overlay(document, name, asked_by)
        layers += [chosen] if chosen is not None else []
        problems += found
    assigned, found = _assigned(environ, flags, sets)
    layers += assigned
    problems += found

    root = Table({}, DEFAULT)
    for layer in layers:
        root = merge_tables(root, layer)
    root, found = with_variables(root, environ)
    problems += found
    config = _validated(root, problems)
    return Loaded(config, provenance(config, root), document.file if document is not None else None, name)


def _assigned(
    environ: Mapping[str, str], flags: Sequence[Assignment], sets: Sequence[str]
) -> tuple[list[Table], list[Issue]]:
    variables, variable_issues = from_variables(environ)
    set_flags, set_issues = from_set_flags(sets)
    layers: list[Table] = []
    issues = variable_issues + set_issues
    for assignment in (*variables, *flags, *set_flags):
        table, found = assignment.read()
        layers += [table] if table is not None else []
        issues += found
    return layers, issues


def _validated(root: Table, problems: list[Issue]) -> Config:
    try:
        config = Config.model_validate(plain(root))
    except ValidationError as error:
        # What is wrong at a place that has a problem already follows from that problem.
        known = {problem.path for problem in problems}
        found = issues_of(error, root, read_reference())
        problems = [*problems, *(issue for issue in found if issue.path not in known)]
        raise invalid_config(problems) from None
    if problems:
        raise invalid_config(problems)
    return config


def provenance(config: Config, root: Table) -> dict[str, Origin]:
    """The origin of every value of `config` that was made of `root`, by dotted path."""
    return {dotted(path): _origin(path, root) for path, _ in leaves(values(config))}


def values(config: Config) -> Mapping[str, object]:
    """All values of `config` as JSON has them, secrets masked."""
    return cast("Mapping[str, object]", config.model_dump(mode="json"))


def _origin(path: Path, root: Table) -> Origin:
    seen: set[Path] = set()
    current: Path | None = path
    while current is not None and current not in seen:
        node = find(root, current)
        if node is not None:
            return node.origin
        seen.add(current)
        current = follows(current)
    return DEFAULT
