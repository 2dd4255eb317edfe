from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_serving.worker.gguf.shards import ShardWriter

from .loading import arrays


def _array(count: int) -> mx.array:
    return mx.zeros((count,), mx.float32)


def _index(directory: Path) -> dict[str, dict[str, object]]:
    return json.loads((directory / "model.safetensors.index.json").read_text())


def test_what_fits_comes_into_one_file(tmp_path: Path) -> None:
    shards = ShardWriter(tmp_path)
    shards.add({"a": _array(10)})
    shards.add({"b": _array(20)})
    shards.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "model.safetensors.index.json"]
    assert _index(tmp_path) == {
        "metadata": {"total_size": 120},
        "weight_map": {"a": "model.safetensors", "b": "model.safetensors"},
    }


def test_files_stay_within_the_limit_and_parts_stay_together(tmp_path: Path) -> None:
    shards = ShardWriter(tmp_path, max_bytes=100)
    shards.add({"a": _array(15)})
    shards.add({"b": _array(10), "b.scales": _array(5)})
    shards.add({"c": _array(50)})
    shards.close()
    first, second, third = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
    assert _index(tmp_path)["weight_map"] == {"a": first, "b": second, "b.scales": second, "c": third}
    assert sorted(arrays(tmp_path / second)) == ["b", "b.scales"]


def test_a_place_that_cannot_be_written_to_is_an_os_error(tmp_path: Path) -> None:
    shards = ShardWriter(tmp_path / "missing")
    shards.add({"a": _array(1)})
    with pytest.raises(OSError, match="missing"):
        shards.close()
