from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer

from mlx_serving.catalog.conversion import Precision
from mlx_serving.catalog.progress import Progress
from mlx_serving.errors import InvalidRequest, ModelLoadError
from mlx_serving.worker.gguf.convert import convert
from mlx_serving.worker.gguf.shards import ShardWriter

from .gguf_files import floats, random_tensor
from .loading import auto_tokenizer, mlx_lm_model, numbers
from .test_architecture import llama3_factors
from .tiny_llama import BOS, END, HEAD_DIM, HIDDEN, INNER, TOKENS, TinyLlama

TINY = TinyLlama()


def _ignore(_: Progress) -> None:
    pass


def _converted(directory: Path, file: TinyLlama, precision: Precision = "float32") -> Path:
    destination = directory / "model"
    convert(file.write(directory / "tiny.gguf"), destination, _ignore, precision)
    return destination


def _logits(directory: Path) -> npt.NDArray[np.float32]:
    return numbers(mlx_lm_model(directory)(mx.array([[1, 2, 3, 4, 5, 6, 7, 8]])))


def test_mlx_lm_loads_the_directory_in_float32(tmp_path: Path) -> None:
    logits = _logits(_converted(tmp_path, TINY))
    assert logits.shape == (1, 8, len(TOKENS))
    assert np.isfinite(logits).all()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_a_quantized_model_computes_what_the_float32_one_does(tmp_path: Path, kind: str) -> None:
    exact = _logits(_converted(tmp_path, TINY.with_kind(kind)))
    shutil.rmtree(tmp_path / "model")
    quantized = _logits(_converted(tmp_path, TINY.with_kind(kind), "quantized"))
    assert np.abs(quantized - exact).max() < 0.02 * np.abs(exact).max()


def test_config_names_the_bits_of_every_matrix(tmp_path: Path) -> None:
    mixed = TINY.with_kind("Q4_1").with_tensors(
        {
            "token_embd.weight": random_tensor("Q8_0", (len(TOKENS), HIDDEN), 1),
            "blk.1.ffn_up.weight": random_tensor("F16", (INNER, HIDDEN), 2),
        }
    )
    directory = _converted(tmp_path, mixed, "quantized")
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
    }
    assert np.isfinite(_logits(directory)).all()


def test_biases_and_a_head_of_its_own_take_part(tmp_path: Path) -> None:
    plain = _logits(_converted(tmp_path, TINY))
    shutil.rmtree(tmp_path / "model")
    biased = _converted(
        tmp_path,
        TINY.with_tensors(
            {
                "blk.0.attn_v.bias": random_tensor("F32", (HIDDEN // 2,), 1),
                "blk.0.ffn_up.bias": random_tensor("F32", (INNER,), 2),
                "output.weight": random_tensor("F32", (len(TOKENS), HIDDEN), 3),
            }
        ),
    )
    assert np.abs(_logits(biased) - plain).max() > 0.01


def test_mlx_lm_rotates_by_the_factors_of_the_file(tmp_path: Path) -> None:
    factors = llama3_factors(32.0)
    file = TINY.with_metadata({"llama.rope.freq_base": 500000.0}).with_tensors({"rope_freqs.weight": floats(factors)})
    rope = mlx_lm_model(_converted(tmp_path, file)).model.layers[0].self_attn.rope
    unscaled = 500000.0 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    np.testing.assert_allclose(numbers(rope._freqs), unscaled * np.array(factors), rtol=1e-4)


def test_transformers_and_mlx_lm_load_the_tokenizer(tmp_path: Path) -> None:
    directory = _converted(tmp_path, TINY)
    tokenizer = auto_tokenizer(directory)
    wrapped = load_tokenizer(directory)
    text = f"hello {BOS} wörld 日本 123"
    ids = tokenizer.encode(text)
    assert ids == Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
    assert tokenizer.decode(ids) == text
    assert wrapped.eos_token_ids == {TOKENS.index(END)}
    assert wrapped.has_chat_template
    assert wrapped.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == f"hello{END}"


def test_progress_counts_the_source_to_its_end(tmp_path: Path) -> None:
    reports: list[Progress] = []
    source = TINY.write(tmp_path / "tiny.gguf")
    convert(source, tmp_path / "model", reports.append, "float32")
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, reports[0].total)
    assert {(report.stage, report.total, report.item) for report in reports} == {
        ("converting", sum(len(tensor.data) for tensor in TINY.tensors.values()), "tiny.gguf")
    }


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    class _StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done > 0:
            raise _StopError

    source = TINY.write(tmp_path / "tiny.gguf")
    with pytest.raises(_StopError):
        convert(source, tmp_path / "model", stop, "float32")
    assert list(tmp_path.iterdir()) == [source]


def test_while_it_is_written_the_directory_does_not_exist(tmp_path: Path) -> None:
    source = TINY.write(tmp_path / "tiny.gguf")

    def look(_: Progress) -> None:
        assert not (tmp_path / "model").exists()

    convert(source, tmp_path / "model", look, "float32")
    assert (tmp_path / "model" / "config.json").exists()


def test_a_destination_that_exists_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(InvalidRequest, match="exists already"):
        convert(tiny_gguf, tmp_path, _ignore)


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Usage(NamedTuple):
        free: int

    def usage(_: Path) -> _Usage:
        return _Usage(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(ModelLoadError, match=r"as float32 needs [\d,]+ bytes, but .* has 1,000 free"):
        convert(tiny_gguf, tmp_path / "model", _ignore, "float32")


def test_a_directory_that_cannot_be_written_is_a_load_error(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_: ShardWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "close", no_space)
    with pytest.raises(ModelLoadError, match=r"model cannot be written: .*No space left on device"):
        convert(tiny_gguf, tmp_path / "model", _ignore, "float32")
    assert list(tmp_path.iterdir()) == []


def test_without_metal_the_default_is_float32(tmp_path: Path, tiny_gguf: Path) -> None:
    convert(tiny_gguf, tmp_path / "model", _ignore)
    manifest = json.loads((tmp_path / "model" / "conversion.json").read_text())
    expected = "quantized" if mx.metal.is_available() else "float32"
    assert (manifest["source"], manifest["precision"]) == ("tiny.gguf", expected)
