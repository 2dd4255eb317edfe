"""LoRA adapters in mlx-lm's form: a directory with adapter_config.json and adapters.safetensors."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx import utils

from mlx_serving.catalog.safetensors import read_header
from mlx_serving.errors import ModelLoadError, ModelNotFound

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Adapter:
    """`digest` is of its content."""

    path: Path
    size_bytes: int
    digest: str


def read(text: str) -> Adapter:
    """The adapter in a directory. Raises `ModelNotFound` where there is none, and `ModelLoadError`, which says what is
    wrong, for one of another kind or with damaged files."""
    path = Path(text).expanduser().absolute()
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        is_peft = (path / "adapter_model.safetensors").is_file()
        hint = "; it is one of PEFT, and mlx-lm's form is needed" if is_peft else ""
        raise ModelNotFound(f"{path} is no LoRA adapter: it has no {' and no '.join(missing)}{hint}", adapter=str(path))
    try:
        config: object = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        tensors = read_header(path / WEIGHTS)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the adapter {path} is damaged: {error}", adapter=str(path)) from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"the adapter {path} is damaged: {CONFIG} holds no object", adapter=str(path))
    facts = cast("Mapping[str, object]", config)
    absent = [name for name in ("num_layers", "lora_parameters") if name not in facts]
    if absent and facts.get("fine_tune_type") != "full":
        raise ModelLoadError(f"the adapter {path} is none of mlx-lm: {CONFIG} lacks {absent[0]}", adapter=str(path))
    if not tensors:
        raise ModelLoadError(f"the adapter {path} is empty: {WEIGHTS} holds no tensor", adapter=str(path))
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (path / name).open("rb") as source:
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
    return Adapter(path, sum(tensor.size_bytes for tensor in tensors.values()), digest.hexdigest())


def attach(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The model with the adapter, as other modules that refer to the same weights. `model` stays as it is.

    Raises `ModelLoadError`, which names the tensors that do not fit.
    """
    twin = _twin(model, {})
    _load(twin, adapter)
    return twin


def fuse(model: nn.Module, adapter: Adapter) -> None:
    """Add the adapter to the weights of `model`, one layer after the other; packed weights are packed again.

    Raises `ModelLoadError`, which names the tensors that do not fit.
    """
    _load(model, adapter)
    untyped: Any = model  # as MLX's stub leaves these methods
    adapted: list[tuple[str, Any]] = [pair for pair in untyped.named_modules() if hasattr(pair[1], "fuse")]
    unflatten: Any = cast(Any, utils).tree_unflatten
    while adapted:
        name, module = adapted.pop()
        fused: Any = module.fuse()
        cast(Any, mx).eval(fused.parameters())
        untyped.update_modules(unflatten([(name, fused)]))
        del module, fused


def _load(model: nn.Module, adapter: Adapter) -> None:
    from mlx_lm.tuner.utils import load_adapters  # imports what trains: only where there is an adapter

    try:
        load_adapters(model, str(adapter.path))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(
            f"the adapter {adapter.path} does not fit: {' '.join(str(error.args[0]).split())}",
            adapter=str(adapter.path),
        ) from error
    model.eval()
    cast(Any, mx).eval(model.parameters())


def _twin(value: Any, known: dict[int, Any]) -> Any:
    """A copy of a tree of modules, lists and dictionaries, in which everything else, the arrays above all, is the same
    object. What occurs twice in one tree does so in the other."""
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, nn.Module):
        module = copy.copy(value)
        known[id(value)] = module
        children = cast("dict[str, Any]", module)  # which a module is
        for name, child in list(children.items()):
            children[name] = _twin(child, known)
        return module
    if isinstance(value, dict):
        return {name: _twin(child, known) for name, child in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_twin(child, known) for child in cast("list[Any]", value)]
    return value
