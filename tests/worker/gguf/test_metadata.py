from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf.metadata import Metadata
from mlx_serving.worker.gguf.reader import Header, Value


def _metadata(**values: Value) -> Metadata:
    return Metadata(Header(Path("a.gguf"), 3, values, ()))


def test_a_default_stands_in_for_a_missing_value_only() -> None:
    metadata = _metadata(number=5)
    assert metadata.integer("number", 7) == 5
    assert metadata.integer("other", 7) == 7


def test_an_array_of_one_value_repeated_counts_as_that_value() -> None:
    assert _metadata(heads=(8, 8, 8)).integer("heads") == 8


def test_an_array_of_different_values_is_not_supported() -> None:
    with pytest.raises(ModelLoadError, match=r"heads differs from layer to layer \(it is \(8, 4\)\)"):
        _metadata(heads=(8, 4)).integer("heads")


@pytest.mark.parametrize("written", [1e-5, 0.1, 10000.0, 500000.0, 1e-6, 0.0, 1.5])
def test_a_float32_reads_as_the_decimal_it_was_written_from(written: float) -> None:
    stored: float = struct.unpack("<f", struct.pack("<f", written))[0]
    assert _metadata(x=stored).real("x") == written


@given(st.floats(width=32))
def test_every_float32_keeps_its_value(stored: float) -> None:
    given_back = _metadata(x=stored).real("x")
    if math.isnan(stored):
        assert math.isnan(given_back)
    else:
        assert struct.pack("<f", given_back) == struct.pack("<f", stored)


def test_a_float64_keeps_its_value() -> None:
    assert _metadata(x=math.pi).real("x") == math.pi
    assert _metadata(x=1e300).real("x") == 1e300


def test_an_integer_is_a_number_too() -> None:
    assert _metadata(x=10000).real("x") == 10000.0


READS: tuple[tuple[Callable[[Metadata], object], str], ...] = (
    (lambda metadata: metadata.integer("text"), "text must be an integer"),
    (lambda metadata: metadata.integer("flag"), "flag must be an integer"),
    (lambda metadata: metadata.real("text"), "text must be a number"),
    (lambda metadata: metadata.real("flag"), "flag must be a number"),
    (lambda metadata: metadata.boolean("number"), "number must be true or false"),
    (lambda metadata: metadata.text("number"), "number must be text"),
    (lambda metadata: metadata.text("missing"), "missing is missing"),
    (lambda metadata: metadata.texts("missing"), "missing is missing"),
    (lambda metadata: metadata.texts("text"), "text must be a list"),
    (lambda metadata: metadata.texts("numbers"), "numbers must be a list of texts"),
    (lambda metadata: metadata.integers("texts"), "texts must be a list of integers"),
    (lambda metadata: metadata.positive("zero"), "zero must be positive"),
)


@pytest.mark.parametrize(("read", "says"), READS)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(read: Callable[[Metadata], object], says: str) -> None:
    metadata = _metadata(text="x", flag=True, number=1, zero=0, numbers=(1, 2), texts=("a",))
    with pytest.raises(ModelLoadError) as caught:
        read(metadata)
    assert says in caught.value.message
    assert caught.value.details["key"] == says.split()[0]
