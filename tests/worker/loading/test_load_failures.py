"""Models that cannot be loaded, by hand against a real process: the answer says why, and the worker goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ..driver import Refused, WorkerProcess


@pytest.fixture
def broken(tmp_path: Path, llama: Path) -> Path:
    """A copy of a good model, to be spoilt by the test."""
    return Path(shutil.copytree(llama, tmp_path / "broken"))


def load(worker: WorkerProcess, directory: Path) -> Refused:
    return worker.refusal("load_model", model_id=str(directory))


def reconfigure(directory: Path, name: str = "config.json", **changes: object) -> None:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_missing_directory(worker: WorkerProcess, tmp_path: Path) -> None:
    refused = load(worker, tmp_path / "absent")
    assert (refused.code, refused.type) == (-32001, "ModelNotFound")
    assert "absent does not exist" in refused.message


def test_a_directory_without_a_config(worker: WorkerProcess, tmp_path: Path) -> None:
    refused = load(worker, tmp_path)
    assert (refused.code, refused.type) == (-32001, "ModelNotFound")
    assert "without a config.json" in refused.message


def test_a_name_that_can_be_none(worker: WorkerProcess) -> None:
    refused = worker.refusal("load_model", model_id="bad\x00name")
    assert (refused.code, refused.type) == (-32602, "InvalidParams")


def _truncate_weights(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 50_000)


def _cut_header(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 5)


def _remove_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _break_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "llama",')


def _config_is_a_list(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def _other_architecture(directory: Path) -> None:
    reconfigure(directory, model_type="no_such_architecture")


def _architecture_is_a_path(directory: Path) -> None:
    reconfigure(directory, model_type="..server")


def _other_shape(directory: Path) -> None:
    reconfigure(directory, hidden_size=32)


def _break_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")


def _remove_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(_truncate_weights, "model.safetensors: it is cut off", id="truncated weights"),
        pytest.param(_cut_header, "model.safetensors: it has no header", id="truncated header"),
        pytest.param(_remove_weights, "no *.safetensors file", id="no weights"),
        pytest.param(_break_config, "its config.json", id="broken config"),
        pytest.param(_config_is_a_list, "its config.json", id="config of another kind"),
        pytest.param(_other_architecture, "no_such_architecture", id="unsupported model type"),
        pytest.param(_architecture_is_a_path, "..server", id="model type that is a path"),
        pytest.param(_other_shape, "its architecture or weights", id="weights of another shape"),
        pytest.param(_break_tokenizer, "its tokenizer", id="broken tokenizer"),
        pytest.param(_remove_tokenizer, "its tokenizer", id="no tokenizer"),
    ],
)
def test_a_spoilt_model_fails_with_the_reason(
    worker: WorkerProcess, speller: Path, broken: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(broken)
    refused = load(worker, broken)
    assert (refused.code, refused.type) == (-32001, "ModelLoadError")
    assert says in refused.message
    assert refused.details["model"] == str(broken)
    assert worker.text(worker.generate(model_id=str(speller), prompt="a", max_tokens=3)) == "bcd"


def _leave_a_mark(directory: Path) -> Path:
    mark = directory / "mark"
    (directory / "custom.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Custom: pass\n")
    return mark


def test_code_for_the_model_is_not_run(worker: WorkerProcess, broken: Path) -> None:
    mark = _leave_a_mark(broken)
    reconfigure(broken, model_file="custom.py")
    refused = load(worker, broken)
    assert (refused.code, refused.type) == (-32001, "ModelLoadError")
    assert "code of its own (model_file: custom.py)" in refused.message
    assert not mark.exists()


def test_code_for_the_tokenizer_is_not_run_and_nobody_is_asked(worker: WorkerProcess, broken: Path) -> None:
    mark = _leave_a_mark(broken)
    reconfigure(
        broken,
        "tokenizer_config.json",
        tokenizer_class="Custom",
        auto_map={"AutoTokenizer": ["custom.Custom", "custom.Custom"]},
    )
    refused = load(worker, broken)
    assert (refused.code, refused.type) == (-32001, "ModelLoadError")
    assert "custom code" in refused.message
    assert "avoid this prompt" not in worker.stderr
    assert not mark.exists()


def test_a_model_that_failed_can_be_loaded_once_it_is_mended(worker: WorkerProcess, broken: Path) -> None:
    reconfigure(broken, model_type="no_such_architecture")
    load(worker, broken)
    reconfigure(broken, model_type="llama")
    assert worker.call("load_model", model_id=str(broken))["state"] == "ready"
    assert worker.call("unload_model", model_id=str(broken)) == {"success": True}
