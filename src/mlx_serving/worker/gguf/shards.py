"""Weights in safetensors files of a bounded size, with the index that Hugging Face gives such sets of files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

MAX_SHARD_BYTES = 5 << 30


class ShardWriter:
    """Collects arrays and writes them as they fill files. The files have their final names after `close`."""

    def __init__(self, directory: Path, max_bytes: int = MAX_SHARD_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._open: dict[str, mx.array] = {}
        self._open_bytes = 0
        self._written: list[list[str]] = []
        self._total_bytes = 0

    def add(self, arrays: Mapping[str, mx.array]) -> None:
        """Take arrays that belong together: they come into the same file. One too large for a file gets its own."""
        size = sum(array.nbytes for array in arrays.values())
        if self._open and self._open_bytes + size > self._max_bytes:
            self._flush()
        self._open.update(arrays)
        self._open_bytes += size
        self._total_bytes += size

    def close(self) -> None:
        """Write what is left, name the files, and write the index."""
        self._flush()
        count = len(self._written)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._written, 1):
            final = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            self._unnamed(number).rename(self._directory / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2) + "\n"
        (self._directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _flush(self) -> None:
        if not self._open:
            return
        self._written.append(list(self._open))
        try:
            mx.save_safetensors(  # pyright: ignore[reportUnknownMemberType]  its stub does not say that it returns None
                self._unnamed(len(self._written)), self._open, metadata={"format": "mlx"}
            )
        except RuntimeError as error:  # MLX knows no other
            raise OSError(str(error)) from error
        self._open = {}
        self._open_bytes = 0

    def _unnamed(self, number: int) -> Path:
        return self._directory / f"part-{number}.safetensors"
