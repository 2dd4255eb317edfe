"""The whole way of the embedded model: from the alias to text that equals the reference implementation's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TypedDict

import mlx.core as mx
import numpy as np
import pytest

from mlx_serving.catalog.aliases import find_gguf
from mlx_serving.catalog.prepare import locate, prepare
from mlx_serving.catalog.progress import Progress
from mlx_serving.catalog.reference import Alias
from mlx_serving.machine import blas
from mlx_serving.worker.gguf.convert import convert

from .loading import arrays, auto_tokenizer, numbers


class _Case(TypedDict):
    messages: list[dict[str, str]] | None
    text: str
    prompt_tokens: list[int]
    tokens: list[int]


class _Reference(TypedDict):
    max_tokens: int
    cases: list[_Case]


REFERENCE: _Reference = json.loads(Path(__file__).with_name("reference.json").read_text())
MODEL = Alias("smollm2-135m")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """Prepared from an empty cache, and removed at the end: half a gigabyte."""
    cache = tmp_path_factory.mktemp("cache")
    reports: list[Progress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_SERVING_CACHE", str(cache))
        assert locate(MODEL, precision="float32") is None
        prepared = prepare(MODEL, reports.append, precision="float32")
        assert locate(MODEL, precision="float32") == prepared
    assert {report.stage for report in reports} == {"reading", "converting"}
    yield prepared
    shutil.rmtree(cache)


def test_prompts_are_rendered_and_tokenized_as_the_reference_does(directory: Path) -> None:
    tokenizer = auto_tokenizer(directory)
    for case in REFERENCE["cases"]:
        if case["messages"] is None:
            assert tokenizer.encode(case["text"]) == case["prompt_tokens"]
        else:
            rendered = tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, tokenize=False)
            assert rendered == case["text"]
            assert tokenizer.encode(rendered, add_special_tokens=False) == case["prompt_tokens"]


def test_greedy_answers_equal_those_of_the_reference(directory: Path, tmp_path: Path) -> None:
    cases = REFERENCE["cases"]
    assert len(cases) >= 10
    answered = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("generate_greedily.py")),
            str(directory),
            str(REFERENCE["max_tokens"]),
        ],
        input=json.dumps([case["prompt_tokens"] for case in cases]),
        env=blas.environment(blas.find(), os.environ, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answered.returncode == 0, answered.stderr
    for case, tokens in zip(cases, json.loads(answered.stdout), strict=True):
        assert tokens == case["tokens"], case["text"]


def test_the_model_knows_the_capital_of_france(directory: Path) -> None:
    tokenizer = auto_tokenizer(directory)
    answers = {case["text"]: tokenizer.decode(case["tokens"]) for case in REFERENCE["cases"]}
    assert any("capital of France?" in prompt and "Paris" in answer for prompt, answer in answers.items())


def test_the_packed_weights_mean_exactly_the_float32_ones(directory: Path, tmp_path: Path) -> None:
    packed_directory = tmp_path / "packed"
    convert(find_gguf(MODEL.name), packed_directory, lambda _: None, "quantized")
    exact = arrays(directory / "model.safetensors")
    packed = arrays(packed_directory / "model.safetensors")
    for name in ("model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.29.mlp.down_proj"):
        weight, scales, biases = (packed[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
        bits = 8 if name == "model.embed_tokens" else 4
        unpacked = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), 32, bits)
        assert np.array_equal(numbers(unpacked), numbers(exact[f"{name}.weight"])), name
