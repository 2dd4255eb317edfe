"""A fast BLAS for MLX's CPU backend on Linux.

The `mlx-cpu` wheel is bound to a reference BLAS whose float32 matrix product is much slower than a tuned one.
Preloading a tuned library with plain `cblas_*` symbols makes MLX call that one instead. The dynamic loader reads its
environment only when a process starts, so the supervisor sets it when it spawns the worker, and a worker that was
started by hand replaces itself once. macOS has Accelerate and needs nothing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_serving.errors import InvalidConfig

ENVIRONMENT_VARIABLE = "MLX_SERVING_BLAS"
_SETTLED = "MLX_SERVING_BLAS_SETTLED"

# One thread each: MLX's CPU stream is one thread already, and more would fight the control process for the cores.
_FORTRAN = "libgfortran.so.5"
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_THREADING_LAYER": "SEQUENTIAL", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Blas:
    """`path` is empty for the library that MLX itself brings."""

    name: str
    path: str = ""


REFERENCE = Blas("reference (bundled with mlx-cpu)")
ACCELERATE = Blas("Accelerate")


def find(choice: str = "auto") -> Blas:
    """The BLAS to use: `auto` takes the fastest installed, `none` MLX's own, anything else is a library's path.

    Raises `InvalidConfig` when that path is no file.
    """
    if sys.platform == "darwin":
        return ACCELERATE
    if choice == "none":
        return REFERENCE
    if choice != "auto":
        path = Path(choice).expanduser()
        if not path.is_file():
            raise InvalidConfig(f'worker.blas must be "auto", "none" or the path of a BLAS library, got {choice!r}')
        return Blas(_name_of(path), str(path))
    prefix = Path(sysconfig.get_path("data")) / "lib"
    site = Path(sysconfig.get_path("purelib"))
    for path in (
        prefix / "libmkl_rt.so.2",
        prefix / "libmkl_rt.so.3",
        site / "cmeel.prefix" / "lib" / "libopenblas.so",
    ):
        if path.is_file():
            return Blas(_name_of(path), str(path))
    system = ctypes.util.find_library("openblas")
    return Blas("OpenBLAS (system)", system) if system else REFERENCE


def _name_of(path: Path) -> str:
    if "mkl" in path.name:
        return "MKL"
    return "OpenBLAS" if "openblas" in path.name else path.name


def environment(blas: Blas, inherited: Mapping[str, str], support_directory: Path) -> dict[str, str]:
    """The environment of a process that shall use `blas`: `inherited`, and what the dynamic loader needs.

    `support_directory` is a place of ours to put links in: the OpenBLAS wheel expects a Fortran runtime that many
    machines lack, while the MLX wheel brings one under another name.
    """
    settled = {**inherited, _SETTLED: "1"}
    if not blas.path:
        return settled
    settled["LD_PRELOAD"] = _joined(blas.path, inherited.get("LD_PRELOAD"))
    runtime = _link_fortran_runtime(support_directory)
    if runtime is not None:
        settled["LD_LIBRARY_PATH"] = _joined(str(runtime), inherited.get("LD_LIBRARY_PATH"))
    return {**_ONE_THREAD, **settled}


def _joined(first: str, rest: str | None) -> str:
    return f"{first}:{rest}" if rest else first


def _link_fortran_runtime(directory: Path) -> Path | None:
    """A directory that has `libgfortran.so.5`, or None when the system has it (or nothing can be done)."""
    if _has_fortran_runtime() or (fortran := _bundled_fortran_runtime()) is None:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    _link(directory / _FORTRAN, fortran)
    for companion in _bundled().glob("libquadmath-*"):
        _link(directory / companion.name, companion)
    return directory


def lacks_fortran_runtime() -> bool:
    """Whether OpenBLAS's wheel cannot be loaded here, because neither the system nor MLX's wheel brings the Fortran
    runtime that it needs."""
    return not _has_fortran_runtime() and _bundled_fortran_runtime() is None


def _has_fortran_runtime() -> bool:
    try:
        ctypes.CDLL(_FORTRAN)
    except OSError:
        return False
    return True


def _bundled_fortran_runtime() -> Path | None:
    return next(iter(sorted(_bundled().glob("libgfortran-*.so.5*"))), None)


def _bundled() -> Path:
    return Path(sysconfig.get_path("purelib")) / "mlx_cpu.libs"


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")  # two processes may do this at once
    fresh.symlink_to(target)
    fresh.replace(link)


def active(blas: Blas) -> Blas:
    """What this process really uses: `blas` if the loader mapped it, else MLX's own."""
    if not blas.path:
        return blas
    name = Path(blas.path).resolve().name
    return blas if name in Path("/proc/self/maps").read_text() else REFERENCE


def settle(support_directory: Path) -> Blas:
    """Make sure that this process has the BLAS it should have, and say which one that is.

    Without the loader's environment the process replaces itself with one that has it: same program, arguments, process
    id and open files. Call it first in `main`.
    """
    blas = find(os.environ.get(ENVIRONMENT_VARIABLE) or "auto")
    if blas.path and _SETTLED not in os.environ:
        os.execve(sys.executable, sys.orig_argv, environment(blas, os.environ, support_directory))  # noqa: S606
    return active(blas)
