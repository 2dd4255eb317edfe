"""Makes blocks.json: packed weights of every kind, and what the reference implementation of GGUF unpacks from them.

Run it in the environment that make_reference.py describes, from the repository's root:

    reference/bin/python -m tests.worker.gguf.make_blocks
"""

from __future__ import annotations

import base64
import importlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .gguf_files import BLOCKS, random_tensor

WEIGHTS = 512


def main() -> None:
    quants: Any = importlib.import_module("gguf.quants")
    constants: Any = importlib.import_module("gguf.constants")
    kinds: dict[str, dict[str, str]] = {}
    for seed, kind in enumerate(BLOCKS):
        tensor = random_tensor(kind, (WEIGHTS,), seed)
        packed = np.frombuffer(tensor.data, np.uint8)
        weights = quants.dequantize(packed, constants.GGMLQuantizationType(tensor.type_number))
        kinds[kind] = {"packed": _text(packed), "weights": _text(weights.astype("<f4"))}
    result = {"made_with": {"gguf": version("gguf")}, "kinds": kinds}
    Path(__file__).with_name("blocks.json").write_text(json.dumps(result, indent=1) + "\n")


def _text(array: Any) -> str:
    return base64.b64encode(array.tobytes()).decode()


if __name__ == "__main__":
    main()
