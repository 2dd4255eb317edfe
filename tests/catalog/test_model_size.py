"""What is measured of a model is what it is loaded from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlx_serving.catalog.model_size import matrices_of, measure, tensors_of
from mlx_serving.errors import ModelLoadError

from ..tiny_models import make_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"))


def test_all_tensors_are_counted(model: Path) -> None:
    size = measure("m", model)
    matrices, other_bytes = matrices_of(tensors_of(model))
    assert size.weights_bytes == size.weights * size.item_bytes == other_bytes + sum(m.weights * 4 for m in matrices)
    assert (size.item_bytes, size.group_size) == (4, 64)
    assert size.largest_bytes == max(matrix.weights for matrix in matrices) * 4


def test_what_lies_beside_the_weights_is_not_counted(model: Path, tmp_path: Path) -> None:
    beside = shutil.copytree(model, tmp_path / "beside")
    shutil.copyfile(beside / "model.safetensors", beside / "consolidated.safetensors")
    assert measure("m", beside) == measure("m", model)


def test_a_damaged_model_is_told(model: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(model, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(ModelLoadError, match="m is damaged"):
        measure("m", damaged)
