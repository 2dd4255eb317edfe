"""Which models have an encoder of images."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mlx_serving.core.images.models import sees

TEXT = ("model.layers.0.self_attn.q_proj.weight", "lm_head.weight")


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        ({"vision_config": {"depth": 2}}, "visual.blocks.0.attn.qkv.weight"),
        ({"vision_config": {"depth": 2}}, "vision_tower.embeddings.weight"),
        ({"img_processor": {"name": "clip"}}, "model.vision_embed_tokens.glb_GN"),
        ({"mm_vision_tower": "clip"}, "model.vision_tower.weight"),
    ],
)
def test_a_model_with_an_encoder_and_weights_for_it_sees(config: Mapping[str, object], weight: str) -> None:
    assert sees(config, (*TEXT, weight))


def test_a_conversion_for_text_keeps_the_config_and_does_not_see() -> None:
    assert not sees({"vision_config": {"depth": 2}}, TEXT)


def test_a_model_of_text_does_not_see() -> None:
    assert not sees({"model_type": "llama"}, TEXT)
    assert not sees({"vision_config": {}}, ("visual.weight",))
