from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf.architecture import Llama, check_supported, read_architecture
from mlx_serving.worker.gguf.metadata import Metadata
from mlx_serving.worker.gguf.reader import read_header

from .gguf_files import MetadataValue, Tensor, floats
from .tiny_llama import CONTEXT, HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, TOKENS, TinyLlama

TINY = TinyLlama()


def _read(directory: Path, file: TinyLlama, factors: tuple[float, ...] | None = None) -> Llama:
    header = read_header(file.write(directory / "model.gguf"))
    metadata = Metadata(header)
    check_supported(header, metadata)
    return read_architecture(header, metadata, factors)


def test_config_describes_the_model_as_mlx_lm_wants_it(tmp_path: Path) -> None:
    assert _read(tmp_path, TINY).config() == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": len(TOKENS),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    }


def test_what_a_file_leaves_out_has_llamas_defaults(tmp_path: Path) -> None:
    keys = ("llama.attention.head_count_kv", "llama.rope.freq_base", "llama.rope.dimension_count")
    model = _read(tmp_path, TINY.without_metadata(*keys))
    assert (model.kv_heads, model.rope_theta, model.head_dim) == (HEADS, 10000.0, HEAD_DIM)


def test_heads_may_be_longer_than_their_share_of_the_hidden_size(tmp_path: Path) -> None:
    lengths = {"llama.attention.key_length": 64, "llama.attention.value_length": 64, "llama.rope.dimension_count": 64}
    assert _read(tmp_path, TINY.with_metadata(lengths)).head_dim == 64


def test_a_head_of_its_own_unties_the_embeddings(tmp_path: Path) -> None:
    output = {"output.weight": TINY.tensors["token_embd.weight"]}
    assert not _read(tmp_path, TINY.with_tensors(output)).tied


def test_biases_are_recognised_by_their_tensors(tmp_path: Path) -> None:
    attention = _read(tmp_path, TINY.with_tensors({"blk.0.attn_q.bias": floats([0.0] * HIDDEN)}))
    assert (attention.attention_bias, attention.mlp_bias) == (True, False)
    mlp = _read(tmp_path, TINY.with_tensors({"blk.1.ffn_up.bias": floats([0.0] * INNER)}))
    assert (mlp.attention_bias, mlp.mlp_bias) == (False, True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"general.architecture": "qwen3moe"}, "general.architecture must be 'llama' (it is 'qwen3moe')"),
        ({"split.count": 3}, "split.count says that this is one part of a model in several files"),
        ({"llama.expert_count": 8}, "llama.expert_count asks for a mixture of experts (it is 8)"),
        ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale"),
        ({"llama.rope.dimension_count": 16}, "llama.rope.dimension_count rotates a part of the 32 dimensions"),
        ({"llama.attention.value_length": 16}, "llama.attention.value_length differs from the length of keys, 32"),
        ({"llama.feed_forward_length": [512, 256]}, "llama.feed_forward_length differs from layer to layer"),
        (
            {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0},
            "llama.rope.scaling.type is none of 'none', 'linear' and 'yarn' (it is 'longrope')",
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
                "llama.rope.scaling.attn_factor": 0.8,
            },
            "llama.rope.scaling.attn_factor must be 1.0 (it is 0.8",
        ),
    ],
)
def test_what_a_llama_of_mlx_lm_cannot_be_is_refused_by_name(
    tmp_path: Path, changes: Mapping[str, MetadataValue], says: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        _read(tmp_path, TINY.with_metadata(changes))
    assert "is not supported" in caught.value.message
    assert says in caught.value.message
    assert caught.value.details["unsupported"] == says.split()[0]


def test_tensors_of_unreadable_kinds_are_refused_with_kind_and_names(tmp_path: Path) -> None:
    tensor = Tensor(23, (INNER, HIDDEN), b"")
    names = [f"blk.{layer}.ffn_{part}.weight" for layer in range(LAYERS) for part in ("gate", "up")]
    file = TINY.with_tensors(dict.fromkeys(names, tensor))
    with pytest.raises(ModelLoadError) as caught:
        _read(tmp_path, file)
    assert (
        "kinds that are not supported (IQ4_XS: blk.0.ffn_gate.weight, blk.0.ffn_up.weight, blk.1.ffn_gate.weight "
        "and 1 more); supported: F32, F16, Q4_0" in caught.value.message
    )
    assert caught.value.details["unsupported"] == ["IQ4_XS"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"llama.attention.head_count_kv": 3}, "llama.attention.head_count_kv must divide the 8 heads"),
        ({"llama.block_count": 0}, "llama.block_count must be positive"),
        ({"llama.block_count": 2**31}, "llama.block_count is more than the file's 20 tensors"),
        ({"llama.context_length": "long"}, "llama.context_length must be an integer"),
    ],
)
def test_contradictions_are_damage(tmp_path: Path, changes: Mapping[str, MetadataValue], says: str) -> None:
    with pytest.raises(ModelLoadError, match="is damaged") as caught:
        _read(tmp_path, TINY.with_metadata(changes))
    assert says in caught.value.message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"llama\.embedding_length is missing"):
        _read(tmp_path, TINY.without_metadata("llama.embedding_length"))


def test_a_model_without_embeddings_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no matrix token_embd\.weight"):
        _read(tmp_path, TINY.without_tensors("token_embd.weight"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, None),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
    ],
)
def test_rope_scaling_of_the_metadata(
    tmp_path: Path, changes: Mapping[str, MetadataValue], expected: Mapping[str, object] | None
) -> None:
    assert _read(tmp_path, TINY.with_metadata(changes)).rope_scaling == expected


def llama3_factors(factor: float, head_dim: int = HEAD_DIM, theta: float = 500000.0) -> tuple[float, ...]:
    """As the converters to GGUF compute `rope_freqs.weight` for Llama 3.1."""
    factors: list[float] = []
    for index in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * index / head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def test_rope_factors_of_llama_3_are_recognised(tmp_path: Path) -> None:
    file = TINY.with_metadata({"llama.rope.freq_base": 500000.0})
    assert _read(tmp_path, file, llama3_factors(32.0)).rope_scaling == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_rope_factors_of_one_scale_nothing(tmp_path: Path) -> None:
    assert _read(tmp_path, TINY, (1.0,) * (HEAD_DIM // 2)).rope_scaling is None


def test_rope_factors_of_another_formula_are_refused(tmp_path: Path) -> None:
    file = TINY.with_metadata({"llama.rope.freq_base": 500000.0})
    factors = list(llama3_factors(8.0))
    factors[3] = 2.5
    with pytest.raises(
        ModelLoadError, match=r"rope_freqs\.weight are not those of Llama 3's formula.*number 3 is 2\.5"
    ):
        _read(tmp_path, file, tuple(factors))


def test_too_few_rope_factors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"rope_freqs\.weight must have 16 values, it has 3"):
        _read(tmp_path, TINY, (1.0, 2.0, 8.0))


def test_rope_factors_beside_another_scaling_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"llama\.rope\.scaling\.type comes on top of the factors"):
        _read(tmp_path, TINY.with_metadata({"llama.rope.scaling.factor": 4.0}), llama3_factors(8.0))
