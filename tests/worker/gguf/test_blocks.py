from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest

from mlx_serving.worker.gguf.blocks import dequantize
from mlx_serving.worker.gguf.tensor_types import READABLE


class _Sample(TypedDict):
    packed: str
    weights: str


_SAMPLES: dict[str, _Sample] = json.loads(Path(__file__).with_name("blocks.json").read_text())["kinds"]


def test_there_is_a_sample_of_every_kind_that_is_read() -> None:
    assert set(_SAMPLES) == {kind.name for kind in READABLE.values()}


@pytest.mark.parametrize("name", _SAMPLES)
def test_weights_equal_those_of_the_reference_implementation_bit_for_bit(name: str) -> None:
    kind = next(kind for kind in READABLE.values() if kind.name == name)
    sample = _SAMPLES[name]
    weights = dequantize(kind, np.frombuffer(base64.b64decode(sample["packed"]), np.uint8))
    assert weights.astype("<f4").tobytes() == base64.b64decode(sample["weights"])
