from __future__ import annotations

import os
import platform
import stat
import sys
from pathlib import Path

import pytest

from mlx_serving.catalog.conversion import convert_in_child, preferred_precision
from mlx_serving.catalog.progress import Progress
from mlx_serving.errors import InvalidRequest, ModelLoadError


def _ignore(_: Progress) -> None:
    pass


def _converter(directory: Path, script: str) -> str:
    """An interpreter that runs `script` whatever module it is asked for."""
    (directory / "script.py").write_text(script)
    path = directory / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{directory}/script.py" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [("darwin", "arm64", "quantized"), ("darwin", "x86_64", "float32"), ("linux", "aarch64", "float32")],
)
def test_only_apple_silicon_prefers_packed_weights(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert preferred_precision() == expected


def test_the_child_is_told_what_to_do_and_its_progress_is_passed_on(tmp_path: Path) -> None:
    python = _converter(
        tmp_path,
        "import json, sys\n"
        "print('something that a library prints')\n"
        "print(json.dumps({'type': 'progress', 'done': 3, 'total': 7, 'item': ' '.join(sys.argv[1:])}))\n",
    )
    reports: list[Progress] = []
    convert_in_child(Path("/a.gguf"), Path("/b"), "quantized", reports.append, python=python)
    command = "-P -m mlx_serving.worker.gguf /a.gguf /b --precision quantized --json-progress"
    assert reports == [Progress("converting", 3, 7, command)]


def test_the_childs_error_is_raised_here(tmp_path: Path) -> None:
    python = _converter(
        tmp_path,
        "import json, sys\n"
        "print(json.dumps({'type': 'error', 'code': 'InvalidParams', 'message': 'm', 'details': {'field': 'f'}}))\n"
        "sys.exit(1)\n",
    )
    with pytest.raises(InvalidRequest, match=r"^m$") as caught:
        convert_in_child(Path("/a.gguf"), Path("/b"), "float32", _ignore, python=python)
    assert caught.value.field == "f"


def test_a_child_that_ends_without_a_word_is_reported_with_its_stderr(tmp_path: Path) -> None:
    python = _converter(tmp_path, "import sys\nsys.exit('no such module')\n")
    with pytest.raises(ModelLoadError, match="ended with exit status 1") as caught:
        convert_in_child(Path("/a.gguf"), Path("/b"), "float32", _ignore, python=python)
    assert caught.value.details["stderr_tail"] == "no such module"


def test_a_child_that_is_killed_is_reported_with_the_signal(tmp_path: Path) -> None:
    python = _converter(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(ModelLoadError, match="signal SIGKILL, which the system sends when memory runs out"):
        convert_in_child(Path("/a.gguf"), Path("/b"), "float32", _ignore, python=python)


def test_much_on_stderr_does_not_block_the_child(tmp_path: Path) -> None:
    python = _converter(tmp_path, "import sys\nsys.stderr.write('x' * 300_000)\nsys.exit(3)\n")
    with pytest.raises(ModelLoadError) as caught:
        convert_in_child(Path("/a.gguf"), Path("/b"), "float32", _ignore, python=python)
    assert caught.value.details["stderr_tail"] == "x" * 2000


def test_an_interpreter_that_does_not_exist_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="the converter cannot be started"):
        convert_in_child(Path("/a.gguf"), Path("/b"), "float32", _ignore, python=str(tmp_path / "none"))


def test_an_error_in_the_callback_ends_the_child(tmp_path: Path) -> None:
    python = _converter(
        tmp_path,
        "import json, os, signal\n"
        "print(json.dumps({'type': 'progress', 'done': os.getpid(), 'total': 0, 'item': ''}), flush=True)\n"
        "signal.pause()\n",
    )
    children: list[int] = []

    def give_up(progress: Progress) -> None:
        children.append(progress.done)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        convert_in_child(Path("/a.gguf"), Path("/b"), "float32", give_up, python=python)
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)


def test_descriptors_can_be_inherited(tmp_path: Path) -> None:
    python = _converter(tmp_path, "import os\nos.write(int(os.environ['TEST_DESCRIPTOR']), b'here')\n")
    read_end, write_end = os.pipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_DESCRIPTOR", str(write_end))
        convert_in_child(Path("/a.gguf"), Path("/b"), "float32", _ignore, python=python, inherit=(write_end,))
    os.close(write_end)
    assert os.read(read_end, 100) == b"here"
    os.close(read_end)
