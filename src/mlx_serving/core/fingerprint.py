"""Which requests have the same answer: those that leave nothing to chance and agree in all that it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import cast

from mlx_serving.core.generation import EmbeddingInputs, GenerationRequest

# Who asks, how urgently, under which name and whether it is drafted changes nothing about the answer.
_NOT_PART = frozenset(
    {"request_id", "priority", "caller", "timeout_s", "fork_of", "delivered", "speculation", "served"}
)


def is_deterministic(request: GenerationRequest) -> bool:
    """Whether the same request has the same answer again: it is greedy by its own word, or seeded."""
    return request.sampling.seed is not None or request.sampling.temperature == 0


def fingerprint(request: GenerationRequest, *facts: str) -> str | None:
    """A name of 64 hexadecimal digits for all that the answer depends on: the request, and `facts` about who answers.

    Objects keep the order of their members, because templates and grammars see it. None for a request that goes on
    behind `delivered` tokens, for one that asks for vectors, which are computed as fast as they are kept, and for one
    that holds what JSON cannot say.
    """
    if request.delivered or isinstance(request.prompt, EmbeddingInputs):
        return None
    asked = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    try:
        told = [_plain(value) for name, value in asked.items() if name not in _NOT_PART]
        text = json.dumps([told, facts], ensure_ascii=True, check_circular=False)
    except (TypeError, RecursionError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    """`value` such that no two different ones look the same in JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if field.compare]
        members = [(field.name, _plain(getattr(value, field.name))) for field in fields]
        return {type(value).__name__: members}
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {"": [(_plain(key), _plain(item)) for key, item in pairs]}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[object]", value)]
    raise TypeError(f"a {type(value).__name__} cannot be compared with what comes later")
