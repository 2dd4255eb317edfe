"""What transformers exports, remembered from one start of a worker to the next.

`import transformers` reads its 1,600 source files, twice, to learn what they export. That is a third of the time in
which a worker starts, and a part of the pause after one has died. What is learned depends on nothing but those files.

To be called before the first import: nobody else can get between the package and what it does when it is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

_PACKAGE = "transformers"
_MODULE = "transformers.utils.import_utils"
_FUNCTION = "define_import_structure"

Exports: TypeAlias = dict[frozenset[str], dict[str, set[str]]]
"""By the packages that they need: the names that modules export."""


def remember(directory: Path) -> None:
    """Have the next import of transformers look into `directory` first, and leave there what it found out."""
    if _PACKAGE not in sys.modules:
        sys.meta_path.insert(0, _Finder(directory))


class _Finder(MetaPathFinder):
    """Finds one module, once, and has it loaded with a memory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Remembering(spec.loader, self._directory)
        return spec


class _Remembering(Loader):
    def __init__(self, loader: Loader, directory: Path) -> None:
        self._loader = loader
        self._directory = directory

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        learn = getattr(module, _FUNCTION, None)
        if learn is not None and module.__file__ is not None:
            setattr(module, _FUNCTION, remembering(learn, self._directory, _version(Path(module.__file__))))


def _version(source: Path) -> str:
    """Differs between any two installations that differ."""
    facts = source.stat()
    return f"{getattr(sys.modules[_PACKAGE], '__version__', '')} {facts.st_size} {facts.st_mtime_ns}"


def remembering(learn: Callable[..., Exports], directory: Path, version: str) -> Callable[..., Exports]:
    """`learn`, which is not called if `directory` has what it gave for the same arguments and version.

    What cannot be read or written there is as if it were not there: it costs time, and nothing else.
    """

    def look_up(module_path: str | Path, prefix: str | None = None) -> Exports:
        called = hashlib.sha256(f"{module_path}\n{prefix}".encode()).hexdigest()[:16]
        file = directory / f"{called}.json"
        exports = _read(file, version)
        if exports is None:
            exports = learn(module_path, prefix)
            _write(file, version, exports)
        return exports

    return look_up


def _read(file: Path, version: str) -> Exports | None:
    try:
        known = json.loads(file.read_bytes())
        return _exports(known["exports"]) if known["version"] == version else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # absent, or not what we have written
        return None


def _exports(told: list[tuple[list[str], dict[str, list[str]]]]) -> Exports:
    return {frozenset(needed): {module: set(names) for module, names in modules.items()} for needed, modules in told}


def _write(file: Path, version: str, exports: Exports) -> None:
    """Unless it would not be read as the same: another transformers may make something else of it."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        told = [
            (sorted(needed), {module: sorted(names) for module, names in modules.items()})
            for needed, modules in exports.items()
        ]
        content = json.dumps({"version": version, "exports": told})
        if _exports(json.loads(content)["exports"]) == exports:
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(content)
            fresh.replace(file)
    except (TypeError, AttributeError):
        pass
    except OSError:  # a folder that is full or not ours
        with contextlib.suppress(OSError):
            fresh.unlink()
