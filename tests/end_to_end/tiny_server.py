"""How the tests configure a server of a random model, and what they ask of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

KEYS = {"api_key": "key-of-the-clients", "admin_key": "key-of-the-operator"}
MAX_BODY_BYTES = 65_536
SHORT_CONTEXT = 48
HEARTBEAT_TIMEOUT_S = 3.0

_A = sorted(pre_tokenizers.ByteLevel.alphabet()).index("a")

FORCED: dict[str, Any] = {"logit_bias": {str(_A): 100}}
"""Whatever the random weights say, the text is "aaaa…" and ends by its length or by a stop string only."""

ENDLESS: dict[str, Any] = {**FORCED, "max_tokens": 90_000}
"""More than a minute of work, unless somebody ends it."""

HELLO: Any = [{"role": "user", "content": "Hello"}]


def config_of(
    model: Path, *, also: Mapping[str, Path] | None = None, **sections: dict[str, object]
) -> dict[str, object]:
    """Serves the model as `tiny`, and its twin, with a small context, as `short`, which loads when it is asked for, as
    do the models of `also`, which are named there."""
    config: dict[str, dict[str, object]] = {
        "models": {
            "served": [
                {"model": str(model), "name": "tiny"},
                {"model": str(twin_of(model)), "name": "short", "preload": False, "context_length": SHORT_CONTEXT},
                *({"model": str(path), "name": name, "preload": False} for name, path in (also or {}).items()),
            ]
        },
        "server": {"max_body_bytes": MAX_BODY_BYTES},
        # The tests kill the worker on purpose, and more often than an operator would put up with.
        "worker": {
            "heartbeat_interval_s": 0.5,
            "heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S,
            "max_restarts": 100,
            "backoff": {"initial_delay_s": 0.01},
        },
        "circuit_breaker": {"failure_threshold": 100},
    }
    return {**config, **{name: {**config.get(name, {}), **section} for name, section in sections.items()}}


def twin_of(model: Path) -> Path:
    """The same model in a directory of its own."""
    twin = model.with_name(f"{model.name}-twin")
    shutil.copytree(model, twin, dirs_exist_ok=True)
    return twin
