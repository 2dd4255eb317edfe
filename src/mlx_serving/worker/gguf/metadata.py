"""Typed access to the metadata of a GGUF file."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf.reader import Header, Scalar, Value

_T = TypeVar("_T", int, float, bool, str)


class Metadata:
    """Looks values up by key. A missing or mistyped value is a `ModelLoadError` that names the key."""

    def __init__(self, header: Header) -> None:
        self._values: Mapping[str, Value] = header.metadata
        self._path: Path = header.path

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, default: int | None = None) -> int:
        """A number without a fraction. An array of equal numbers counts as that number.

        Some files give a value of which every layer has its own as an array; mlx-lm has one for all layers.
        """
        value = self._values.get(key, default)
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, tuple):
            self.unsupported(key, "differs from layer to layer")
        return self._typed(key, value, int, "an integer")

    def positive(self, key: str, default: int | None = None) -> int:
        """An integer of at least 1."""
        value = self.integer(key, default)
        if value < 1:
            self.invalid(key, "must be positive")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number. One that was stored as float32 is given as the shortest decimal that means it: 1e-05, 0.1."""
        value = self._values.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return _shortest(self._typed(key, value, float, "a number"))

    def boolean(self, key: str, default: bool | None = None) -> bool:
        return self._typed(key, self._values.get(key, default), bool, "true or false")

    def text(self, key: str, default: str | None = None) -> str:
        return self._typed(key, self._values.get(key, default), str, "text")

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(self._typed(key, element, int, "a list of integers") for element in self._list(key))

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self._typed(key, element, str, "a list of texts") for element in self._list(key))

    def unsupported(self, key: str, why: str) -> NoReturn:
        """Refuse the file for what it says under `key`."""
        shown = repr(self._values.get(key))
        raise ModelLoadError(
            f"{self._path} is not supported: {key} {why} (it is {shown[:100]})", path=str(self._path), unsupported=key
        )

    def invalid(self, key: str, why: str) -> NoReturn:
        """Refuse the file as damaged for what it says under `key`."""
        shown = repr(self._values.get(key))
        raise ModelLoadError(
            f"{self._path} is damaged: {key} {why} (it is {shown[:100]})", path=str(self._path), key=key
        )

    def _list(self, key: str) -> tuple[Scalar, ...]:
        value = self._values.get(key)
        if not isinstance(value, tuple):
            self.invalid(key, "is missing" if value is None else "must be a list")
        return value

    def _typed(self, key: str, value: Value | None, kind: type[_T], what: str) -> _T:
        if value is None:
            self.invalid(key, "is missing")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.invalid(key, f"must be {what}")
        return value


def _shortest(value: float) -> float:
    for digits in range(1, 10):  # nine significant digits tell any two float32 apart
        candidate = float(f"{value:.{digits}g}")
        if _as_float32(candidate) == value:
            return candidate
    return value  # a float64, or no finite number


def _as_float32(value: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return float("inf")
