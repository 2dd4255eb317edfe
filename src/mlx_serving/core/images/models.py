"""Which models are computed as vision-language models: told by their config.json and the names of their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_PARTS = ("vision_config", "img_processor", "mm_vision_tower", "mm_vision_config")
_NAMES = ("vision", "visual", "image", "img", "vit.")


def sees(config: Mapping[str, object], weights: Iterable[str]) -> bool:
    """Whether a model has an encoder of images, and weights for it: conversions for text leave those out, and keep the
    config."""
    return any(config.get(part) for part in _PARTS) and any(part in name for name in weights for part in _NAMES)
