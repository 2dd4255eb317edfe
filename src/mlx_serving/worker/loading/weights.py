"""The weights of a model: read, packed if asked for, shared with those that have the same, adapted.

Names that are served from the same files in the same form share one copy of the weights, whichever was loaded first.
An adapter that is not fused is computed beside them, in a tree of modules of its own that refers to the same arrays, so
that ten adapters of a model take ten adapters' memory and one model's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx import utils
from mlx_lm.utils import load_model

from mlx_serving.catalog.model_size import matrices_of, tensors_of
from mlx_serving.catalog.safetensors import read_header, weight_files
from mlx_serving.core import quantization
from mlx_serving.core.load_pace import LoadPace
from mlx_serving.core.quantization import Matrix, Quantization
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest
from mlx_serving.worker.loading import adapters

_EVAL_BYTES = 256 << 20
# Packing reads up to this many times what it writes: 2 bits of 32.
_PACKING = 16


@dataclass(frozen=True, slots=True)
class Base:
    """Weights in memory that several names may be served from. `key` says from which files and in which form."""

    key: str
    model: nn.Module
    config: Mapping[str, Any]
    size_bytes: int


FindBase = Callable[[str], Base | None]

OpenModel = Callable[[Path], tuple[nn.Module, dict[str, Any]]]
"""Makes the model of a directory, of which no weight is read yet, and gives its config."""


def open_text(directory: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A model of mlx-lm. Raises whatever that raises."""
    model, config = load_model(directory, lazy=True)
    return model, config


class WeightPlan:
    """What loading a model will do. Reads headers only; `open`, `evaluate` and `adapt` follow in this order.

    Raises `InvalidRequest` for what cannot be done with the model, `ModelNotFound` and `ModelLoadError` for an adapter
    that is none.
    """

    def __init__(
        self, model_id: str, directory: Path, config: Mapping[str, object], options: WeightOptions, find_base: FindBase
    ) -> None:
        self._model_id = model_id
        self._directory = directory
        self._options = options
        self._quantization = quantization.parse(options.quantization)
        if self._quantization is not None:
            _require_unpacked(model_id, config, self._quantization)
        self._adapter = None if options.adapter is None else adapters.read(options.adapter)
        self.key = f"{directory.resolve()} {self._quantization} {_stamps(directory)}"
        self._base = find_base(self.key)

    @property
    def needed_bytes(self) -> int:
        """What will be taken besides what is in memory already, with the largest tensor that is packed beside it."""
        own = 0 if self._adapter is None else self._adapter.size_bytes
        if self._base is not None and not self._options.fuse_adapter:
            return own
        if self._quantization is None:
            return own + sum(file.stat().st_size for file in weight_files(self._directory))
        matrices, other_bytes = matrices_of(tensors_of(self._directory))
        largest = max((matrix.weights * matrix.item_bytes for matrix in matrices), default=0)
        return own + quantization.predicted_bytes(self._quantization, matrices, other_bytes) + largest

    def identity(self, config_digest: str) -> str:
        """A digest of what the model computes, as far as config.json and these options say: `config_digest` itself
        for a model as it is on disk."""
        if self._options.is_plain:
            return config_digest
        told = f"{config_digest} {self._quantization} {self._adapter and self._adapter.digest}"
        return hashlib.sha256(f"{told} {self._options.fuse_adapter}".encode()).hexdigest()

    def open(self, open_model: OpenModel = open_text) -> tuple[nn.Module, dict[str, Any]]:
        """The model, of which no weight may have been read yet, and its config.

        Raises `InvalidRequest` when its weights cannot be packed, and whatever `open_model` raises.
        """
        if self._base is not None and not self._options.fuse_adapter:
            return self._base.model, dict(self._base.config)
        model, config = open_model(self._directory)
        if self._quantization is not None:
            _pack(model, self._quantization, self._model_id)
            config["quantization"] = {
                "group_size": self._quantization.group_size,
                "bits": self._quantization.bits,
                "mode": self._quantization.mode,
            }
        return model, config

    def evaluate(self, model: nn.Module, pace: LoadPace) -> Iterator[tuple[int, int]]:
        """Read the weights from disk in slices as `pace` says, so that others get their turns, that a slow disk shows
        as progress and not as a hang, and that packing never has much of the unpacked weights in memory. Gives the
        bytes that are there after each slice, and how many there will be."""
        most = _EVAL_BYTES if self._quantization is None else _EVAL_BYTES // _PACKING
        weights = parameters(model)
        total = sum(weight.nbytes for weight in weights)
        done = 0
        piece: list[mx.array] = []
        piece_bytes = 0
        for weight in weights:
            if piece and piece_bytes + weight.nbytes > min(pace.slice_bytes, most):
                began = time.perf_counter()
                _evaluate(piece)
                pace.note(piece_bytes, time.perf_counter() - began)
                done += piece_bytes
                yield done, total
                piece, piece_bytes = [], 0
            piece.append(weight)
            piece_bytes += weight.nbytes
        _evaluate(piece)
        yield total, total

    def adapt(self, model: nn.Module, config: Mapping[str, Any]) -> tuple[nn.Module, Base | None, int]:
        """The model to be served, the weights that it shares (None: its own), and the bytes that are its own."""
        size = _size(model)
        if self._options.fuse_adapter and self._adapter is not None:
            adapters.fuse(model, self._adapter)
            return model, None, _size(model)
        base = self._base or Base(self.key, model, config, size)
        if self._adapter is None:
            return model, base, 0
        adapted = adapters.attach(model, self._adapter)
        return adapted, base, _size(adapted) - size


def parameters(model: nn.Module) -> list[mx.array]:
    """All arrays of a model."""
    # MLX's stub leaves this function partly untyped.
    flatten: Any = utils.tree_flatten  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    flat: list[tuple[str, mx.array]] = flatten(model.parameters())
    return [weight for _, weight in flat]


def _size(model: nn.Module) -> int:
    return sum(weight.nbytes for weight in parameters(model))


def _evaluate(arrays: list[mx.array]) -> None:
    mx.eval(arrays)  # pyright: ignore[reportUnknownMemberType]  MLX's stub leaves its arguments untyped


def _require_unpacked(model_id: str, config: Mapping[str, object], wanted: Quantization) -> None:
    text = config.get("text_config")
    nested = cast("Mapping[str, object]", text) if isinstance(text, Mapping) else dict[str, object]()
    for place in (config, nested):
        for name in ("quantization", "quantization_config"):
            if place.get(name):
                raise InvalidRequest(
                    f"{model_id} is quantised already ({name} of its config.json says so), and cannot be quantised to "
                    f"{wanted}: leave quantization out, or give a model that is not",
                    field="quantization",
                    given=str(wanted),
                )


def _pack(model: nn.Module, wanted: Quantization, model_id: str) -> None:
    """Replace layers by packed ones, which are computed when they are evaluated."""
    # What an architecture's own rule says: which layers stay as they are, or get other bits.
    rule: Any = getattr(model, "quant_predicate", None)
    quantization.require_packable(wanted, _layers(model, rule), model_id)

    def chosen(path: str, module: Any) -> Any:
        if not hasattr(module, "to_quantized") or not quantization.can_pack(wanted, module.weight.shape[-1]):
            return False
        return True if rule is None else rule(path, module)

    cast(Any, nn).quantize(model, wanted.group_size, wanted.bits, mode=wanted.mode, class_predicate=chosen)


def _layers(model: nn.Module, rule: Any) -> Iterator[Matrix]:
    modules: list[tuple[str, Any]] = cast(Any, model).named_modules()
    for path, module in modules:
        if hasattr(module, "to_quantized") and (rule is None or rule(path, module)):
            weight: mx.array = module.weight
            yield Matrix(path, weight.shape[-1], weight.size, weight.itemsize)


def tensor_names(directory: Path) -> set[str]:
    """Of all weights in a model's files."""
    names: set[str] = set()
    for file in directory.glob("*.safetensors"):
        try:
            names.update(read_header(file))
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from None
    return names


def _stamps(directory: Path) -> str:
    """How the files look from outside: another content would look differently."""
    files = sorted([*directory.glob("*.safetensors"), directory / "config.json"])
    stats = [(file.name, file.stat()) for file in files]
    return " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}" for name, stat in stats)
