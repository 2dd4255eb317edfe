"""The conversion of a GGUF file, as seen from outside the worker.

It needs MLX, so it runs in a process of its own: `python -m mlx_serving.worker.gguf SOURCE DESTINATION --json-progress`
writes one JSON object a line on stdout, a `ConversionProgress` whenever there is some, and a `ConversionFailure` and a
non-zero exit status if it fails.
"""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Literal, TypeAlias, assert_never

import msgspec

from mlx_serving.catalog.progress import OnProgress, Progress
from mlx_serving.errors import EngineError, ModelLoadError, from_code

CONVERTER_VERSION = 1
"""Raised whenever the converter writes something else for the same GGUF file; it is part of a conversion's name."""

MANIFEST = "conversion.json"
"""The file in a converted model's directory that holds its `Manifest`."""

PARTIAL_SUFFIX = ".partial"
"""How the name of a directory ends that is being written: `.<final name>.<random>.partial` beside its final place."""

Precision: TypeAlias = Literal["float32", "quantized"]
"""`float32`: every weight dequantised. `quantized`: packed weights in MLX's affine format, the rest in float16."""

_MODULE = "mlx_serving.worker.gguf"
_STDERR_TAIL = 2000


class Manifest(msgspec.Struct, frozen=True):
    """What a converted model was made from: the name of the GGUF file, and how."""

    source: str
    precision: str
    converter_version: int = CONVERTER_VERSION


class ConversionProgress(msgspec.Struct, frozen=True, tag="progress"):
    """`done` of `total` bytes of the source; `item` is the file's name."""

    done: int
    total: int
    item: str


class ConversionFailure(msgspec.Struct, frozen=True, tag="error"):
    """An `EngineError`, as its `to_object` gives it."""

    code: str
    message: str
    details: dict[str, object]


ConversionLine: TypeAlias = ConversionProgress | ConversionFailure


def preferred_precision() -> Precision:
    """What is fastest on this machine, told without importing MLX.

    Metal multiplies packed weights directly; on a CPU only float32 matrices reach the BLAS. MLX has Metal exactly on
    Macs with Apple silicon.
    """
    return "quantized" if sys.platform == "darwin" and platform.machine() == "arm64" else "float32"


def convert_in_child(
    source: Path,
    destination: Path,
    precision: Precision,
    on_progress: OnProgress,
    *,
    python: str,
    inherit: Sequence[int] = (),
) -> None:
    """Convert `source` to the model directory `destination` in a child process of the interpreter `python`.

    The descriptors `inherit` stay open in the child. If `on_progress` raises, the child is killed. Raises the error
    that the converter reports, and `ModelLoadError` if it ends without one.
    """
    # -P: no module in the working directory may take the place of an installed one.
    command = [python, "-P", "-m", _MODULE, str(source), str(destination), "--precision", precision, "--json-progress"]
    with tempfile.TemporaryFile() as stderr:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, pass_fds=inherit
            )
        except OSError as error:
            raise ModelLoadError(f"the converter cannot be started: {error}", path=str(source)) from error
        with child:
            try:
                failure = _follow(child.stdout or (), on_progress)
            except BaseException:
                child.kill()
                raise
        if failure is not None:
            raise failure
        if child.returncode != 0:
            raise _unexplained(source, child.returncode, stderr)


def _follow(lines: Iterable[bytes], on_progress: OnProgress) -> EngineError | None:
    decoder = msgspec.json.Decoder[ConversionLine](ConversionLine)
    failure: EngineError | None = None
    for text in lines:
        try:
            line = decoder.decode(text)
        except msgspec.MsgspecError:  # something that a library printed
            continue
        match line:
            case ConversionProgress(done, total, item):
                on_progress(Progress("converting", done, total, item))
            case ConversionFailure(code, message, details):
                failure = from_code(code, message, details)
            case _:
                assert_never(line)
    return failure


def _unexplained(source: Path, status: int, stderr: IO[bytes]) -> ModelLoadError:
    stderr.seek(max(0, stderr.seek(0, 2) - _STDERR_TAIL))
    tail = stderr.read().decode(errors="replace").strip()
    ending = f"exit status {status}"
    if status < 0:
        ending = f"signal {_signal_name(-status)}"
    if status == -signal.SIGKILL:
        ending += ", which the system sends when memory runs out"
    return ModelLoadError(
        f"the conversion of {source} ended with {ending}",
        path=str(source),
        exit_status=status,
        stderr_tail=tail or None,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
