"""Which model to load, in which form, and how it stays in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, cast

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.fields import AS_IDLE_TIME
from mlx_serving.config.model_names import default_name
from mlx_serving.core import kv_form, quantization
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest
from mlx_serving.facade.option_base import Options, either, parse, unsupported


class QuantizationOptions(Options):
    """What is left out is MLX's own choice: 4 bits in groups of 64, or those of the mode."""

    bits: int | None = None
    group_size: int | None = Field(default=None, validation_alias=either("group_size"))
    mode: str = "affine"


class LoadModelOptions(Options):
    """`context_length` caps the model's own; `local_path` overrides where the model is read from.

    `quantization` packs the weights as they are read: `4bit`, `8bit-g32`, `mxfp4`, or the same as `{"bits": 4,
    "group_size": 64, "mode": "affine"}`, all of which may be left out. `adapter` is the directory of a LoRA adapter,
    which shares the weights of its model with others unless it is fused: name the result with `name`. `kv_bits` packs
    the KV caches, in groups of `kv_group_size` (64). `pin` keeps the model in memory whatever others need, `keep_alive`
    is how long it stays when nobody uses it: seconds, or a text like `5m`, negative for ever. `draft` is for a model
    that is to draft for others: one that cannot is refused.
    """

    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1, max_length=4096)
    revision: str | None = None
    local_path: str | None = Field(default=None, validation_alias=either("local_path"))
    context_length: int | None = Field(default=None, validation_alias=either("context_length"), ge=1, le=1_000_000)
    draft: bool = False
    quantization: str | None = None
    adapter: str | None = Field(default=None, validation_alias=either("adapter", "adapter_path", "adapterPath"))
    fuse_adapter: bool = Field(default=False, validation_alias=either("fuse_adapter"))
    pin: bool | None = None
    keep_alive: Annotated[float, AS_IDLE_TIME] | None = Field(default=None, validation_alias=either("keep_alive"))
    kv_bits: Literal[4, 8] | None = Field(default=None, validation_alias=either("kv_bits"))
    kv_group_size: Literal[32, 64, 128] | None = Field(default=None, validation_alias=either("kv_group_size"))
    name: str | None = Field(default=None, min_length=1, max_length=256)
    trust_remote_code: bool = Field(default=False, validation_alias=either("trust_remote_code"))

    @field_validator("trust_remote_code")
    @classmethod
    def _off(cls, value: bool) -> bool:
        if value:
            raise unsupported("is not supported")
        return value

    @field_validator("quantization", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        try:
            if isinstance(value, Mapping):
                asked = parse(QuantizationOptions, cast("Mapping[str, object]", value))
                value = str(quantization.of(asked.bits, asked.group_size, asked.mode))
            return WeightOptions(value).quantization if isinstance(value, str) else value
        except InvalidRequest as error:
            reason = error.message.removeprefix("quantization").lstrip(": ")
            raise PydanticCustomError("quantization", "{rule}", {"rule": reason}) from None

    @model_validator(mode="after")
    def _packs_and_fuses_something(self) -> Self:
        if self.fuse_adapter and self.adapter is None:
            raise PydanticCustomError("fuse_adapter", "needs an adapter", {"at": ["fuse_adapter"]})
        if self.kv_group_size is not None and self.kv_bits is None:
            raise PydanticCustomError("kv_group_size", "needs kv_bits", {"at": ["kv_group_size"]})
        return self

    @property
    def weights(self) -> WeightOptions:
        kv = kv_form.of(self.kv_bits, self.kv_group_size)
        return WeightOptions(self.quantization, self.adapter, self.fuse_adapter, kv)

    @property
    def served_name(self) -> str:
        """What the model goes by: `name`, else what was asked for, with an adapter a name made from both."""
        return self.name or (self.model if self.adapter is None else default_name(self.model, self.adapter))
