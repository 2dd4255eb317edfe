from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import IO, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf.reader import read_header

from .gguf_files import Tensor, floats, random_tensor, write_gguf
from .tiny_llama import METADATA, TOKENS

SMALL = {"general.architecture": "llama", "general.name": "é", "numbers": [1, 2, 3], "words": ["a", "", "b"]}


def _file(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _start(*, tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def test_metadata_and_tensors_come_back_as_written(tmp_path: Path) -> None:
    tensor = random_tensor("Q4_0", (3, 64), 1)
    metadata = {**SMALL, "yes": True, "real": 0.5, "big": 2**40, "floats": [0.5, 1.5]}
    path = write_gguf(tmp_path / "a.gguf", metadata, {"v": floats([1.0, 2.0]), "m": tensor})
    header = read_header(path)
    assert header.version == 3
    assert dict(header.metadata) == {
        **SMALL, "numbers": (1, 2, 3), "words": ("a", "", "b"), "yes": True, "real": 0.5, "big": 2**40,
        "floats": (0.5, 1.5),
    }  # fmt: skip
    vector, matrix = header.tensors
    assert (vector.name, vector.shape, str(vector.type), vector.weights) == ("v", (2,), "F32", 2)
    assert (matrix.name, matrix.shape, str(matrix.type), matrix.weights) == ("m", (3, 64), "Q4_0", 192)
    content = path.read_bytes()
    assert content[matrix.start : matrix.start + matrix.size] == tensor.data
    assert content[vector.start : vector.start + vector.size] == struct.pack("<2f", 1.0, 2.0)


def test_version_2_is_read(tmp_path: Path) -> None:
    assert read_header(write_gguf(tmp_path / "a.gguf", SMALL, {}, version=2)).version == 2


def test_the_alignment_that_the_file_names_is_used(tmp_path: Path) -> None:
    tensors = {"a": floats([1.0]), "b": floats([2.0])}
    path = write_gguf(tmp_path / "a.gguf", {"general.alignment": 64}, tensors, alignment=64)
    header = read_header(path)
    assert [tensor.start % 64 for tensor in header.tensors] == [0, 0]
    assert path.read_bytes()[header.tensors[1].start :] == struct.pack("<f", 2.0)


def test_the_file_is_opened_for_reading_only(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    really_open = Path.open

    def watched_open(path: Path, mode: str = "r") -> IO[bytes]:
        modes.append(mode)
        return cast(IO[bytes], really_open(path, mode))

    monkeypatch.setattr(Path, "open", watched_open)
    read_header(tiny_gguf)
    assert modes == ["rb"]


def test_a_tensor_of_an_unknown_kind_is_listed_without_a_type(tmp_path: Path) -> None:
    tensor = read_header(write_gguf(tmp_path / "a.gguf", SMALL, {"x": Tensor(23, (2, 256), b"")})).tensors[0]
    assert (tensor.type_number, tensor.type) == (23, None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no GGUF file: it has 0 bytes"),
        (b"PK\x03\x04" + bytes(60), "no GGUF file: it begins with b'PK"),
        (_start(version=1), "GGUF version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian GGUF"),
        (b"GGUF\x03\x00", "within the version"),
        (b"GGUF" + struct.pack("<IQ", 3, 0), "within the number of metadata entries"),
        (_start(tensors=2**60), "cannot hold the 1152921504606846976 tensors"),
        (_start(entries=2**40) + bytes(100), "cannot hold the 1099511627776 metadata entries"),
        (_start(entries=1) + struct.pack("<Q", 2**50) + bytes(99), "a metadata key is said to have 1125899906842624"),
        (_start(entries=1) + _text(b"\xff\xfe") + bytes(99), "a metadata key is no UTF-8 text"),
        (_start(entries=1) + _text(b"k") + struct.pack("<IQ", 8, 2**60), "within the value of 'k'"),
        (
            _start(entries=1) + _text(b"k") + struct.pack("<I", 99) + bytes(9),
            "the value of 'k' has the unknown type 99",
        ),
        (_start(entries=1) + _text(b"k") + struct.pack("<IIQ", 9, 4, 2**60), "elements of 'k'"),
        (_start(entries=1) + _text(b"k") + struct.pack("<IIQ", 9, 8, 2**60), "strings of 'k'"),
        (_start(entries=1) + _text(b"k") + struct.pack("<IIQ", 9, 9, 1), "an array of arrays"),
        (_start(entries=2) + (_text(b"k") + struct.pack("<IB", 0, 1)) * 2, "has 'k' twice"),
        (_start(tensors=1) + _text(b"t") + struct.pack("<IQIQ", 9, 1, 0, 0), "tensor 't' has 9 dimensions"),
        (_start(tensors=1) + _text(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0), "tensor 't' is empty"),
        (_start(tensors=1) + _text(b"t") + struct.pack("<IQIQ", 1, 33, 2, 0), "rows of 33 weights, no multiple of 32"),
        (_start(tensors=1) + _text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 1) + bytes(99), "not aligned to 32 bytes"),
        (
            _start(entries=1) + _text(b"general.alignment") + struct.pack("<II", 4, 3) + bytes(99),
            "general.alignment must be a positive multiple of 8, it is 3",
        ),
    ],
)
def test_a_damaged_header_is_refused_with_the_reason(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read_header(_file(tmp_path / "a.gguf", content))
    assert says in caught.value.message
    assert caught.value.details["path"] == str(tmp_path / "a.gguf")


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    tensor = _text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 0)
    with pytest.raises(ModelLoadError, match="the tensor 't' twice"):
        read_header(_file(tmp_path / "a.gguf", _start(tensors=2), tensor, tensor, bytes(99)))


def test_a_file_that_lacks_its_end_names_the_tensor_and_the_sizes(tmp_path: Path, tiny_gguf: Path) -> None:
    content = tiny_gguf.read_bytes()
    last = read_header(tiny_gguf).tensors[-1]
    with pytest.raises(ModelLoadError) as caught:
        read_header(_file(tmp_path / "a.gguf", content[:-1]))
    assert f"it has {len(content) - 1} bytes, and tensor {last.name!r} (F32) ends at byte {len(content)}" in str(
        caught.value
    )


def test_a_file_that_does_not_exist_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nothing\.gguf cannot be read: No such file"):
        read_header(tmp_path / "nothing.gguf")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_gives_a_header_or_a_load_error_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    whole = _SMALL_FILE
    changes = data.draw(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=8)
    )
    content = bytearray(whole)
    for at, byte in changes:
        content[at] = byte
    length = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    path = _file(tmp_path / "damaged.gguf", bytes(content[:length]))
    try:
        header = read_header(path)
    except ModelLoadError:
        return
    for tensor in header.tensors:
        assert tensor.type is None or tensor.start + tensor.size <= length


def _small_file() -> bytes:
    """A file of every construct whose header is most of it, so that most damage hits the header."""
    with tempfile.TemporaryDirectory() as directory:
        metadata = {**METADATA, "tokenizer.ggml.tokens": TOKENS[:4], "tokenizer.ggml.token_type": [1, 1, 3, 4]}
        tensors = {"a": floats([1.0]), "b": random_tensor("Q8_0", (2, 32), 0), "c": random_tensor("F16", (2, 3), 0)}
        return write_gguf(Path(directory) / "small.gguf", metadata, tensors).read_bytes()


_SMALL_FILE = _small_file()
