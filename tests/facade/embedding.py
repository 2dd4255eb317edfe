"""What a program that embeds the engine writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..tiny_models import VOCABULARY

NO_SPECIAL_TOKENS = dict.fromkeys(range(256, VOCABULARY), -100.0)


def configuration(model: Path) -> dict[str, object]:
    return {
        "models": {"served": [{"model": str(model), "name": "tiny", "preload": False}]},
        "worker": {"backoff": {"initial_delay_s": 0.01, "max_delay_s": 0.02}},
    }


def params(**changes: Any) -> dict[str, object]:
    """Eight greedy tokens of the tiny model."""
    base = {"model": "tiny", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    return {**base, "logit_bias": NO_SPECIAL_TOKENS, **changes}


def endless(**changes: Any) -> dict[str, object]:
    return params(max_tokens=4000, **changes)
