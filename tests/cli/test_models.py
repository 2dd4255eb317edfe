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

    def asked(self, *arguments: str) -> Any:
        return json.loads(self.models(*arguments, "--json")[0])

    def names(self) -> list[str]:
        return [entry["model"] for entry in self.asked("list")["models"]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_embedded_model_is_listed_before_it_is_prepared(machine: Machine) -> None:
    (entry,) = machine.asked("list")["models"]
    assert (entry["model"], entry["kind"], entry["path"], entry["size_bytes"]) == ("smollm2-135m", "alias", None, None)
    out, _ = machine.models("list")
    assert [line.split()[0] for line in out.splitlines()] == ["model", "smollm2-135m"]
    assert "not here" in out


def test_a_gguf_file_is_pulled_listed_told_of_and_removed(machine: Machine) -> None:
    gguf = TinyLlama().write(machine.home / "tiny.gguf")
    pulled = machine.asked("pull", str(gguf))
    path = Path(pulled["path"])
    assert path.is_relative_to(machine.cache)
    assert (path / "config.json").is_file()
    assert machine.asked("info", str(gguf)) == pulled
    assert (pulled["kind"], pulled["model_type"]) == ("gguf", "llama")
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
