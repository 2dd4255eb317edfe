from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_serving.worker.gguf.__main__ import main


def test_json_lines_tell_the_progress(
    tmp_path: Path, tiny_gguf: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main([str(tiny_gguf), str(tmp_path / "model"), "--precision", "float32", "--json-progress"]) == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert {line["type"] for line in lines} == {"progress"}
    assert lines[-1]["done"] == lines[-1]["total"] > 0
    assert (tmp_path / "model" / "config.json").exists()


def test_a_json_line_tells_the_error(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([str(tmp_path / "none.gguf"), str(tmp_path / "model"), "--json-progress"]) == 1
    line = json.loads(capfdbinary.readouterr().out)
    assert (line["type"], line["code"]) == ("error", "ModelLoadError")
    assert line["message"].endswith("cannot be read: No such file or directory")
    assert line["details"] == {"path": str(tmp_path / "none.gguf")}


def test_an_unforeseen_failure_is_told_as_well(
    tmp_path: Path, tiny_gguf: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise LookupError("odd")

    monkeypatch.setattr("mlx_serving.worker.gguf.convert.convert", break_down)
    assert main([str(tiny_gguf), str(tmp_path / "model"), "--json-progress"]) == 1
    line = json.loads(capfdbinary.readouterr().out)
    assert line["message"] == f"{tiny_gguf} cannot be converted: LookupError: odd"


def test_a_person_gets_text(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([str(tmp_path / "none.gguf"), str(tmp_path / "model")]) == 1
    captured = capfdbinary.readouterr()
    assert captured.out == b""
    assert captured.err.startswith(b"error: ")


def test_wrong_arguments_are_explained(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["a.gguf", "model", "--precision", "int3"])
    assert b"float32" in capfdbinary.readouterr().err
