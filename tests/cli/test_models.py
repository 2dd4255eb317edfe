from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.catalog.store import CACHE_VARIABLE

from ..command_line import run
from ..worker.gguf.tiny_llama import TinyLlama

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Machine:
    """An empty home with caches of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = home / "cache"
        self.hub = home / "huggingface" / "hub"

    def models(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        ended = run(self.home, "models", *arguments, variables={CACHE_VARIABLE: str(self.cache)})
        assert ended.returncode == status, ended.stderr
        return ended.stdout, ended.stderr

    def pull(self, *arguments: str) -> tuple[str, str]:
        ended = run(self.home, "pull", *arguments, variables={CACHE_VARIABLE: str(self.cache)})
        assert ended.returncode == 0, ended.stderr
        return ended.stdout, ended.stderr

    def asked(self, *arguments: str) -> Any:
        return json.loads(self.models(*arguments, "--json")[0])

    def names(self) -> list[str]:
        return [entry["model"] for entry in self.asked("list")["models"]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_embedded_model_is_listed_before_it_is_prepared(machine: Machine) -> None:
    entry = machine.asked("list")["models"][0]
    assert (entry["model"], entry["kind"], entry["path"], entry["size_bytes"]) == ("smollm2-135m", "alias", None, None)
    out, _ = machine.models("list")
    assert [line.split()[0] for line in out.splitlines()[:-1]] == ["model", "smollm2-135m", "all-minilm-l6-v2"]
    assert "not here" in out


def test_a_gguf_file_is_pulled_listed_told_of_and_removed(machine: Machine) -> None:
    gguf = TinyLlama().write(machine.home / "tiny.gguf")
    pulled = machine.asked("pull", str(gguf))
    path = Path(pulled["path"])
    assert path.is_relative_to(machine.cache)
    assert (path / "config.json").is_file()
    assert (pulled["repaired"], pulled["up_to_date"]) == ([], True)
    info = machine.asked("info", str(gguf))
    assert (info["kind"], info["model_type"], info["path"]) == ("gguf", "llama", str(path))
    assert path.name in machine.names()

    out, _ = machine.models("info", str(gguf))
    assert str(path) in out
    assert "True" not in out
    out, _ = machine.models("rm", str(gguf))
    assert out.startswith(f"removed {gguf}: ")
    assert not path.exists()
    assert gguf.exists()
    assert path.name not in machine.names()


def test_a_model_of_the_hub_is_found_in_its_cache_and_removed(machine: Machine, tiny_model: Path) -> None:
    repository = machine.hub / "models--some--tiny"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(tiny_model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)

    assert "some/tiny" in machine.names()
    info = machine.asked("info", "some/tiny")
    assert (info["kind"], info["path"]) == ("hub", str(snapshot))
    assert (info["context_length"], info["chat_template"]) == (4096, True)
    assert machine.asked("rm", "some/tiny")["freed_bytes"] > 0
    assert not repository.exists()


def test_a_damaged_model_is_told_of_with_a_fix(machine: Machine) -> None:
    gguf = TinyLlama().write(machine.home / "tiny.gguf")
    out, _ = machine.pull(str(gguf))
    path = Path(out.splitlines()[-1])
    assert {
        "model": path.name,
        "files": len(list(path.iterdir())),
        "size_bytes": sum(file.stat().st_size for file in path.iterdir()),
        "compared_digests": 0,
        "damaged": [],
    } in machine.asked("verify")["models"]
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    out, _ = machine.models("verify", str(gguf), status=1)
    assert "1 damaged" in out
    assert f"fix: mlx-serving pull {gguf}" in out
    out, _ = machine.models("verify", status=1)
    assert f"fix: mlx-serving models rm {path.name}" in out
    out, _ = machine.models("verify", str(shutil.copytree(path, machine.home / "copy")), status=1)
    assert "fix: bring its files here again" in out
    out, _ = machine.pull(str(gguf))
    assert out.startswith("repaired: model.safetensors is damaged: it is cut off")
    machine.models("verify", str(gguf))


def test_the_remains_of_a_download_are_listed_and_removed(machine: Machine) -> None:
    blobs = machine.hub / "models--some--large" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / ("0" * 64 + ".mlx-serving.incomplete")).write_bytes(bytes(1234))
    listed = machine.asked("list")
    *packaged, remains = listed["models"]
    assert (remains["model"], remains["kind"], remains["size_bytes"]) == ("some/large", "incomplete", 1234)
    assert listed["total_bytes"] == 1234 + sum(entry["size_bytes"] or 0 for entry in packaged)
    assert listed["free_bytes"] > 0
    _, err = machine.models("verify", "some/large", status=1)
    assert "mlx-serving pull some/large" in err
    assert machine.asked("rm", "some/large")["freed_bytes"] == 1234
    assert not blobs.exists()


def test_a_directory_is_told_of_but_not_removed(machine: Machine, tiny_model: Path) -> None:
    assert machine.asked("info", str(tiny_model))["path"] == str(tiny_model)
    _, err = machine.models("rm", str(tiny_model), status=2)
    assert str(tiny_model) in err
    assert tiny_model.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("info", "smollm2-136m"), 1, "did you mean 'smollm2-135m'?"),
        (("info", "no/where"), 1, "HF_HUB_OFFLINE"),
        (("pull", "./nothing.gguf"), 1, "does not exist"),
        (("rm", "smollm2-135m"), 1, "nothing was converted"),
        (("rm", "no/where"), 1, "no/where"),
        (("info", "a--b/c"), 2, "is no hub id"),
        (("info", "smollm2-135m", "--revision", "main"), 2, "revision"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    machine: Machine, arguments: tuple[str, ...], status: int, told: str
) -> None:
    out, err = machine.models(*arguments, status=status)
    assert out == ""
    assert told in err.splitlines()[-1]


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_broken_config_json_is_told(machine: Machine, content: str) -> None:
    (machine.home / "config.json").write_text(content, errors="surrogateescape")
    _, err = machine.models("info", str(machine.home), status=1)
    assert "config.json" in err
