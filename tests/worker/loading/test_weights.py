"""Weights in the forms that they can be served in: packed as they are read, shared, with adapters."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx import nn, utils
from mlx_lm.utils import load_model

from mlx_serving.catalog.safetensors import read_header
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest, ModelLoadError, ModelNotFound
from mlx_serving.wire.methods import KnownCapabilities
from mlx_serving.worker.loading.adapters import WEIGHTS
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.weights import Base

from ...tiny_models import make_adapter, make_llama
from ..bench import Bench, Reference, load

PROMPT = "The quick brown fox"
KEYS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def _arrays(model: Any) -> dict[str, mx.array]:
    return dict(cast(Any, utils).tree_flatten(model.parameters()))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "first", llama, seed=1, keys=KEYS)


@pytest.fixture(scope="module")
def other_adapter(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "second", llama, seed=2, rank=2)


def _of(*models: LoadedModel) -> Callable[[str], Base | None]:
    return lambda key: next((model.base for model in models if model.base and model.base.key == key), None)


# -- packed


@pytest.mark.parametrize(
    ("text", "bits", "group", "mode"),
    [
        ("2bit", 2, 64, "affine"),
        ("3bit-g32", 3, 32, "affine"),
        ("4bit", 4, 64, "affine"),
        ("6bit", 6, 64, "affine"),
        ("8bit-g32", 8, 32, "affine"),
        ("mxfp4", 4, 32, "mxfp4"),
        ("mxfp8", 8, 32, "mxfp8"),
        ("nvfp4", 4, 16, "nvfp4"),
    ],
)
def test_weights_are_packed_as_mlx_packs_them(llama: Path, text: str, bits: int, group: int, mode: str) -> None:
    reference = load_model(llama)[0]
    cast(Any, nn).quantize(reference, group, bits, mode=mode)
    packed = load(llama, options=WeightOptions(text))
    found, expected = _arrays(packed.model), _arrays(reference)
    assert found.keys() == expected.keys()
    assert all(bool(mx.array_equal(found[name], expected[name]).item()) for name in expected)
    assert packed.facts.quantization == f"{bits}-bit, group {group}" + (f", {mode}" if mode != "affine" else "")
    assert packed.facts.parameter_count == load(llama).facts.parameter_count
    assert packed.facts.memory_bytes == sum(array.nbytes for array in expected.values())


def test_a_packed_model_says_what_one_packed_on_disk_says(llama: Path, quantised: Path) -> None:
    """Both are the same random weights in 4 bits, groups of 32."""
    packed = Bench(load(llama, options=WeightOptions("4bit-g32"))).run(PROMPT)
    assert packed.tokens == Bench(load(quantised)).run(PROMPT).tokens


def test_memory_is_asked_for_in_the_form_that_is_loaded(llama: Path) -> None:
    asked: list[int] = []
    whole = load(llama, require_memory=asked.append)
    packed = load(llama, require_memory=asked.append, options=WeightOptions("4bit"))
    largest = max(array.nbytes for array in _arrays(whole.model).values())
    assert asked[0] == (llama / "model.safetensors").stat().st_size
    assert asked[1] == packed.facts.memory_bytes + largest


def test_what_computes_something_else_has_another_digest(llama: Path, adapter: Path, other_adapter: Path) -> None:
    """By it are known what an architecture can do, and which version of a model an answer is from."""
    forms = [
        WeightOptions(),
        WeightOptions("4bit"),
        WeightOptions("8bit"),
        WeightOptions(adapter=str(adapter)),
        WeightOptions(adapter=str(other_adapter)),
        WeightOptions(adapter=str(adapter), fuse_adapter=True),
    ]
    assert len({load(llama, options=form).facts.config_digest for form in forms}) == len(forms)


def test_packing_never_has_all_of_the_unpacked_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama(tmp_path / "deep", layers=40)
    size = (model / "model.safetensors").stat().st_size
    monkeypatch.setattr("mlx_serving.worker.loading.weights._EVAL_BYTES", 16 * 10_000)
    form = WeightOptions("4bit")
    found = load(model, options=form).facts
    known = KnownCapabilities(found.config_digest, found.capabilities)  # so that nothing is tried with the model
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    packed = load(model, options=form, known=known)
    taken = mx.get_peak_memory() - before
    assert packed.facts.memory_bytes < taken < packed.facts.memory_bytes + size / 4


def test_what_is_packed_already_is_refused(quantised: Path) -> None:
    with pytest.raises(
        InvalidRequest, match=r"is quantised already \(quantization of its config\.json says so\)"
    ) as no:
        load(quantised, options=WeightOptions("8bit"))
    assert no.value.field == "quantization"


def test_rows_that_do_not_divide_are_refused_by_name(tmp_path: Path) -> None:
    odd = make_llama(tmp_path / "odd", head_dim=8)  # the output of attention has 32 weights a row
    with pytest.raises(InvalidRequest, match=r"rows of model\.layers\..\.self_attn\.o_proj have 32 weights, which 64"):
        load(odd, options=WeightOptions("4bit"))
    assert load(odd, options=WeightOptions("4bit-g32")).facts.quantization == "4-bit, group 32"


# -- adapters


def test_an_adapted_model_says_what_it_says_in_mlx_lm(llama: Path, adapter: Path, other_adapter: Path) -> None:
    plain = Bench(load(llama)).run(PROMPT).tokens
    texts = {tuple(plain)}
    for path in (adapter, other_adapter):
        adapted = Bench(load(llama, options=WeightOptions(adapter=str(path)))).run(PROMPT)
        assert adapted.tokens == Reference(llama, path).tokens(PROMPT, 24)
        texts.add(tuple(adapted.tokens))
    assert len(texts) == 3


def test_a_fused_adapter_says_the_same(llama: Path, adapter: Path) -> None:
    beside = load(llama, options=WeightOptions(adapter=str(adapter)))
    fused = load(llama, options=WeightOptions(adapter=str(adapter), fuse_adapter=True))
    tokens = mx.array([[1, 2, 3, 4]])
    difference = mx.abs(cast(Any, beside.model)(tokens) - cast(Any, fused.model)(tokens))
    assert bool((mx.max(difference) < 1e-3).item())
    assert Bench(fused).run(PROMPT).tokens == Bench(beside).run(PROMPT).tokens
    assert fused.facts.memory_bytes == load(llama).facts.memory_bytes
    assert fused.base is None


def test_models_of_the_same_weights_have_them_once(llama: Path, adapter: Path, other_adapter: Path) -> None:
    """Whichever is loaded first. The second adapter needs memory for itself alone."""
    first = load(llama, options=WeightOptions(adapter=str(adapter)))
    asked: list[int] = []
    form = WeightOptions(adapter=str(other_adapter))
    second = load(llama, options=form, find_base=_of(first), require_memory=asked.append)
    plain = load(llama, find_base=_of(second), require_memory=asked.append)
    assert asked == [second.own_bytes, 0]
    assert second.own_bytes == sum(tensor.size_bytes for tensor in read_header(other_adapter / WEIGHTS).values())
    assert first.base is second.base is plain.base
    whole = {id(array) for array in _arrays(plain.model).values()}
    for adapted in (first, second):
        assert whole <= {id(array) for array in _arrays(adapted.model).values()}
        assert adapted.facts.memory_bytes == plain.facts.memory_bytes + adapted.own_bytes
    assert Bench(plain).run(PROMPT).tokens == Bench(load(llama)).run(PROMPT).tokens


def test_other_files_are_not_shared(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "model")
    first = load(tmp_path / "model")
    make_llama(tmp_path / "model", seed=5)
    second = load(tmp_path / "model", find_base=_of(first))
    assert first.base is not second.base
    packed = load(tmp_path / "model", options=WeightOptions("4bit"), find_base=_of(first, second))
    assert packed.base not in (first.base, second.base)


def test_packed_weights_take_adapters_too(llama: Path, adapter: Path) -> None:
    packed = load(llama, options=WeightOptions("8bit"))
    adapted = load(llama, options=WeightOptions("8bit", str(adapter)), find_base=_of(packed))
    fused = load(llama, options=WeightOptions("8bit", str(adapter), fuse_adapter=True), find_base=_of(packed))
    assert adapted.base is packed.base
    assert fused.facts.memory_bytes == packed.facts.memory_bytes
    assert Bench(adapted).run(PROMPT).tokens != Bench(packed).run(PROMPT).tokens
    assert fused.facts.quantization == "8-bit, group 64"


@pytest.mark.parametrize(
    ("name", "content", "kind", "told"),
    [
        ("adapter_config.json", None, ModelNotFound, "has no adapter_config.json"),
        ("adapters.safetensors", None, ModelNotFound, "has no adapters.safetensors"),
        ("adapter_config.json", b"{", ModelLoadError, "is damaged"),
        ("adapter_config.json", b"[]", ModelLoadError, "holds no object"),
        ("adapter_config.json", b'{"peft_type": "LORA"}', ModelLoadError, "lacks num_layers"),
        ("adapters.safetensors", b"short", ModelLoadError, "is damaged: it has no header"),
        ("adapters.safetensors", b"\2\0\0\0\0\0\0\0{}", ModelLoadError, "is empty"),
    ],
)
def test_what_is_no_adapter_is_refused(
    llama: Path, adapter: Path, tmp_path: Path, name: str, content: bytes | None, kind: type[Exception], told: str
) -> None:
    broken = shutil.copytree(adapter, tmp_path / "broken")
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_bytes(content)
    with pytest.raises(kind, match=told):
        load(llama, options=WeightOptions(adapter=str(broken)))


def test_an_adapter_of_another_shape_is_refused_with_its_tensors(llama: Path, adapter: Path, tmp_path: Path) -> None:
    deeper = make_llama(tmp_path / "deeper", layers=3, head_dim=32)
    with pytest.raises(ModelLoadError, match=r"does not fit: .*self_attn\.q_proj\.lora_b: adapter shape"):
        load(deeper, options=WeightOptions(adapter=str(adapter)))
    taller = make_adapter(tmp_path / "taller", make_llama(tmp_path / "three", layers=3))
    with pytest.raises(ModelLoadError, match=r"layers\.2\..*: not an adapter parameter in the model"):
        load(llama, options=WeightOptions(adapter=str(taller)))
