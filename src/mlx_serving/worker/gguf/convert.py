"""From a GGUF file to a model directory."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np

from mlx_serving.catalog.conversion import MANIFEST, PARTIAL_SUFFIX, Manifest, Precision
from mlx_serving.catalog.progress import OnProgress, Progress
from mlx_serving.errors import InvalidRequest, ModelLoadError
from mlx_serving.worker.gguf.architecture import ROPE_FACTORS, Llama, check_supported, read_architecture
from mlx_serving.worker.gguf.blocks import Bytes
from mlx_serving.worker.gguf.metadata import Metadata
from mlx_serving.worker.gguf.reader import Header, read_header
from mlx_serving.worker.gguf.shards import ShardWriter
from mlx_serving.worker.gguf.tokenizer import GgufTokenizer, read_tokenizer
from mlx_serving.worker.gguf.weights import (
    GROUP_SIZE,
    check_tensors,
    converted,
    converted_size,
    kept_bits,
    read_floats,
    slots,
    zero_biases,
)


def fastest_precision() -> Precision:
    """Metal multiplies packed weights directly; on a CPU only float32 matrices reach the BLAS."""
    return "quantized" if mx.metal.is_available() else "float32"


def convert(source: Path, destination: Path, on_progress: OnProgress, precision: Precision | None = None) -> None:
    """Make the model directory `destination` from the GGUF file `source`.

    `destination` appears when it is complete, or not at all. `precision` None is the fastest on this machine. Progress
    counts bytes of the source's tensors. Raises `ModelLoadError` for a file that is damaged or not supported, and for a
    disk without the room; `InvalidRequest` when `destination` is there already.
    """
    if destination.exists():
        raise InvalidRequest(f"{destination} exists already", field="destination", given=str(destination))
    precision = precision or fastest_precision()
    header = read_header(source)
    metadata = Metadata(header)
    check_supported(header, metadata)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _require_space(header, destination.parent, precision)
    data = np.memmap(source, np.uint8, mode="r").view(np.ndarray)
    model = read_architecture(header, metadata, _rope_factors(header, data))
    check_tensors(header, model)
    tokenizer = read_tokenizer(metadata, model.vocabulary, model.context_length)
    with _complete_or_absent(destination) as partial:
        _write(partial, header, model, tokenizer, data, precision, on_progress)


@contextlib.contextmanager
def _complete_or_absent(destination: Path) -> Generator[Path]:
    """A directory beside `destination` to be filled; it gets that name at the end, or is removed."""
    partial = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        partial.mkdir()
        yield partial
        partial.rename(destination)
    except OSError as error:
        raise ModelLoadError(f"{destination} cannot be written: {error}", path=str(destination)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    directory: Path,
    header: Header,
    model: Llama,
    tokenizer: GgufTokenizer,
    data: Bytes,
    precision: Precision,
    on_progress: OnProgress,
) -> None:
    places = slots(model)
    tensors = [tensor for tensor in header.tensors if tensor.name in places]
    total = sum(tensor.size for tensor in tensors)
    done = 0
    shards = ShardWriter(directory)
    on_progress(Progress("converting", 0, total, header.path.name))
    for tensor in tensors:
        shards.add(converted(tensor, places[tensor.name], data, precision))
        done += tensor.size
        on_progress(Progress("converting", done, total, header.path.name))
    shards.add(dict(zero_biases(header, model, precision)))
    shards.close()
    tokenizer.write(directory)
    bits = {places[tensor.name].module: kept_bits(tensor, precision) for tensor in tensors}
    _write_config(directory, model, tokenizer, {module: kept for module, kept in bits.items() if kept}, precision)
    manifest = Manifest(source=header.path.name, precision=precision)
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest))


def _write_config(
    directory: Path, model: Llama, tokenizer: GgufTokenizer, bits: Mapping[str, int], precision: Precision
) -> None:
    config = {
        **model.config(),
        **tokenizer.config(),
        "torch_dtype": "float32" if precision == "float32" else "float16",
    }
    if bits:
        usual = Counter(bits.values()).most_common(1)[0][0]
        quantization: dict[str, object] = {"group_size": GROUP_SIZE, "bits": usual, "mode": "affine"}
        for module, kept in bits.items():
            if kept != usual:
                quantization[module] = {"group_size": GROUP_SIZE, "bits": kept, "mode": "affine"}
        config["quantization"] = config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _rope_factors(header: Header, data: Bytes) -> tuple[float, ...] | None:
    for tensor in header.tensors:
        if tensor.name == ROPE_FACTORS:
            return tuple(float(value) for value in read_floats(tensor, data))
    return None


def _require_space(header: Header, directory: Path, precision: Precision) -> None:
    needed = sum(converted_size(tensor, precision) for tensor in header.tensors)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelLoadError(
            f"{header.path.name} as {precision} needs {needed:,} bytes, but {directory} has {free:,} free",
            needed_bytes=needed,
            free_bytes=free,
        )
