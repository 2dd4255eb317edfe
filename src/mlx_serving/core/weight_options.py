"""In which form a model is served: its weights as they are on disk, packed, with an adapter; its KV caches."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_serving.core import quantization
from mlx_serving.core.kv_form import KvForm
from mlx_serving.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class WeightOptions:
    """`quantization` as `core.quantization.parse` understands it, None as the weights are. `adapter` is the directory
    of a LoRA adapter. A `fuse_adapter` is added to the weights, which then nobody shares; otherwise it is computed
    beside them, and all adapters of a model share its weights. `kv` is the form of its KV caches, None as computed.

    Raises `InvalidRequest` for a quantization that there is not, and for `fuse_adapter` without an adapter.
    """

    quantization: str | None = None
    adapter: str | None = None
    fuse_adapter: bool = False
    kv: KvForm | None = None

    def __post_init__(self) -> None:
        chosen = quantization.parse(self.quantization)
        object.__setattr__(self, "quantization", None if chosen is None else str(chosen))
        if self.fuse_adapter and self.adapter is None:
            raise InvalidRequest("fuse_adapter needs an adapter", field="fuse_adapter", given=True)

    def __str__(self) -> str:
        form = "it is on disk" if self.quantization is None else self.quantization
        if self.adapter is not None:
            form += f" with the adapter {self.adapter}{' fused' if self.fuse_adapter else ''}"
        return form if self.kv is None else f"{form} with its KV caches in {self.kv}"

    @property
    def is_plain(self) -> bool:
        """Whether the weights are served as they are on disk."""
        return self.quantization is None and self.adapter is None


AS_THEY_ARE = WeightOptions()
