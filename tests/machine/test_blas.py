"""Which BLAS is chosen, what a process needs to get it, and whether the worker really has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_serving.core.worker_lifecycle import WorkerPolicy
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_process import WorkerCommand
from mlx_serving.errors import InvalidConfig
from mlx_serving.machine import blas
from mlx_serving.machine.blas import Blas
from mlx_serving.telemetry.events import EventBus
from mlx_serving.wire.methods import BlasInfo
from mlx_serving.wire.settings import WorkerSettings

linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")

SETTLE = """
import ctypes, sys
from pathlib import Path
from mlx_serving.machine import blas
used = blas.settle(Path(sys.argv[1]))
import mlx.core as mx
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
print(used.name, used.path, sep="\\n")
regions = [line.split() for line in open("/proc/self/maps")]
if used.path:
    # What the dynamic loader finds first is what MLX's library was bound to.
    address = ctypes.cast(ctypes.CDLL(None).cblas_sgemm, ctypes.c_void_p).value
    for region in regions:
        start, end = (int(edge, 16) for edge in region[0].split("-"))
        if start <= address < end:
            print(region[-1])
else:
    print(*sorted({region[-1] for region in regions if "blas" in region[-1] or "mkl_rt" in region[-1]}), sep="\\n")
"""


@linux
def test_auto_takes_an_installed_tuned_library() -> None:
    found = blas.find("auto")
    assert found.name in ("OpenBLAS", "MKL")
    assert Path(found.path).is_file()
    assert blas.find() == found


@linux
def test_none_is_the_one_that_mlx_brings() -> None:
    assert blas.find("none") == blas.REFERENCE
    assert blas.REFERENCE.path == ""


@linux
@pytest.mark.parametrize(
    ("file", "name"), [("libopenblas.so.0", "OpenBLAS"), ("libmkl_rt.so.2", "MKL"), ("libblis.so", "libblis.so")]
)
def test_a_path_is_taken_as_it_is(tmp_path: Path, file: str, name: str) -> None:
    library = tmp_path / file
    library.touch()
    assert blas.find(str(library)) == Blas(name, str(library))


@linux
def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"worker\.blas") as caught:
        blas.find(str(tmp_path))
    assert str(tmp_path) in caught.value.message


def test_on_macos_it_is_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.find("auto") == blas.find("none") == blas.ACCELERATE
    assert blas.active(blas.ACCELERATE) == blas.ACCELERATE


@linux
def test_the_environment_preloads_the_library_and_keeps_what_was_there(tmp_path: Path) -> None:
    before = {"HOME": "/h", "LD_PRELOAD": "/other.so"}
    after = blas.environment(Blas("OpenBLAS", "/blas.so"), before, tmp_path)
    assert after["LD_PRELOAD"] == "/blas.so:/other.so"
    assert after["HOME"] == "/h"
    assert after["OPENBLAS_NUM_THREADS"] == after["MKL_NUM_THREADS"] == "1"
    assert before == {"HOME": "/h", "LD_PRELOAD": "/other.so"}


@linux
def test_who_chose_the_number_of_threads_keeps_it(tmp_path: Path) -> None:
    after = blas.environment(Blas("OpenBLAS", "/blas.so"), {"OPENBLAS_NUM_THREADS": "4"}, tmp_path)
    assert after["OPENBLAS_NUM_THREADS"] == "4"


def test_nothing_is_preloaded_for_the_library_that_mlx_brings(tmp_path: Path) -> None:
    after = blas.environment(blas.REFERENCE, {"HOME": "/h"}, tmp_path)
    assert "LD_PRELOAD" not in after
    assert after["HOME"] == "/h"


@linux
def test_a_library_that_is_not_mapped_is_not_in_use(tmp_path: Path) -> None:
    library = tmp_path / "libnever.so"
    library.touch()
    assert blas.active(Blas("never", str(library))) == blas.REFERENCE


@linux
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_process_that_settles_really_calls_what_it_says(tmp_path: Path, choice: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLX_SERVING_BLAS", "LD_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", SETTLE, str(tmp_path)],
        env={**environment, blas.ENVIRONMENT_VARIABLE: choice},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = blas.find(choice)
    name, path, *mapped = done.stdout.splitlines()
    assert (name, path) == (expected.name, expected.path)
    (library,) = mapped
    if expected.path:
        assert Path(library).resolve() == Path(expected.path).resolve()
    else:
        assert "mlx_cpu.libs" in library


@linux
@pytest.mark.parametrize("choice", ["auto", "none"])
async def test_the_worker_tells_which_one_it_uses_and_has_it_mapped(choice: str) -> None:
    supervisor = Supervisor(WorkerCommand(WorkerSettings(), blas=choice), WorkerPolicy(), EventBus())
    try:
        await supervisor.client()
        info = supervisor.info
        assert info is not None
        expected = blas.find(choice)
        assert info.blas == BlasInfo(expected.name, expected.path)
        assert _maps(info.pid, blas.find("auto")) == (choice == "auto")
    finally:
        await supervisor.stop()


def _maps(pid: int, library: Blas) -> bool:
    name = Path(library.path).resolve().name
    return name in Path(f"/proc/{pid}/maps").read_text()


@linux
def test_the_fortran_runtime_is_that_of_the_system_or_of_mlx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not blas.lacks_fortran_runtime()  # OpenBLAS's wheel works here, as others of these tests show

    def place(_: str) -> str:
        return str(tmp_path)

    def nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(blas.ctypes, "CDLL", nothing)
    monkeypatch.setattr(blas.sysconfig, "get_path", place)
    assert blas.lacks_fortran_runtime()
    (tmp_path / "mlx_cpu.libs").mkdir()
    (tmp_path / "mlx_cpu.libs" / "libgfortran-1a2b.so.5.0.0").touch()
    assert not blas.lacks_fortran_runtime()
