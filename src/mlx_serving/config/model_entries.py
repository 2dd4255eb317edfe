"""The entries of the section `models`: a model that is served, and another name for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.fields import NO_SPACES, IdleTime, PublicName, Reference, Section, known_quantization
from mlx_serving.config.model_names import default_name
from mlx_serving.config.profiles import Profile
from mlx_serving.core import kv_form
from mlx_serving.core.weight_options import WeightOptions

ParserName = Annotated[str, Field(min_length=1, max_length=64, pattern=NO_SPACES)]


def _one_of(allowed: tuple[int, ...]) -> Callable[[int], int]:
    def check(given: int) -> int:
        if given not in allowed:
            numbers = ", ".join(map(str, allowed))
            raise PydanticCustomError(
                "one_of", "must be one of {numbers}, got {given}", {"numbers": numbers, "given": given}
            )
        return given

    return check


def _name_from(validated: Mapping[str, object]) -> str:
    adapter = validated.get("adapter")
    return default_name(str(validated["model"]), adapter if isinstance(adapter, str) else None)


class ServedModel(Section):
    """A model that clients can name."""

    model: Reference = Field(
        description="Hub id, directory of an MLX model, path of a GGUF file (both relative to the working directory), "
        "or alias."
    )
    quantization: Annotated[str | None, AfterValidator(known_quantization)] = Field(
        default=None,
        description="How the weights are packed as they are read: bits and group, as in `4bit` or `8bit-g32`, or "
        "`mxfp4`, `mxfp8`, `nvfp4`; null leaves them as they are.",
    )
    adapter: Reference | None = Field(
        default=None,
        description="Directory of a LoRA adapter in mlx-lm's form. All adapters of a model share its weights.",
    )
    fuse_adapter: bool = Field(
        default=False,
        description="Whether the adapter is added to the weights, which are then this name's own, instead of being "
        "computed beside them.",
    )
    kv_bits: Annotated[int, Field(ge=4, le=8), AfterValidator(_one_of(kv_form.BITS))] | None = Field(
        default=None,
        description="How many bits a number takes in the model's KV caches and in what is kept of them; null keeps "
        "them as they are computed.",
    )
    kv_group_size: Annotated[int, Field(ge=32, le=128), AfterValidator(_one_of(kv_form.GROUP_SIZES))] | None = Field(
        default=None,
        description="How many numbers share a scale in packed KV caches; the model's heads must divide into such "
        "groups. Null is 64.",
    )
    name: PublicName = Field(
        default_factory=_name_from,
        validate_default=True,
        description="Name that clients use, unique; by default the hub id, the alias, the name of the directory, or "
        "the name of the GGUF file without its ending; with an adapter, that, a colon, and the adapter's directory.",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit at the hub; null is the hub's default branch."
    )
    preload: bool = Field(default=True, description="Whether the model is loaded at start or with its first request.")
    pin: bool = Field(
        default=False,
        description="Whether the model stays in memory once it is loaded, whatever other models need and however long "
        "nobody uses it.",
    )
    keep_alive_s: IdleTime | None = Field(
        default=None,
        description="How long the model stays in memory when nobody uses it: seconds, or a text like `5m` or `1h30m`; "
        "negative is for ever, null leaves it to `models.keep_alive_s`.",
    )
    profile: Profile = Field(default=Profile(), description="What holds under this name where a request is silent.")
    warm_up: bool = Field(
        default=True,
        description="Whether the model generates a few tokens when it is loaded, so that its first user does not wait "
        "for what is done once.",
    )
    context_length: int | None = Field(
        default=None,
        ge=1,
        description="Cap of the context, in tokens (prompt and answer); null is the model's own length.",
    )
    tool_parser: ParserName | None = Field(
        default=None,
        description="How the model writes calls of tools (docs/tools.md lists the names), or none; null finds out from "
        "its template.",
    )
    reasoning_parser: ParserName | None = Field(
        default=None,
        description="How the model marks its reasoning (docs/tools.md lists the names), or none; null finds out from "
        "its vocabulary.",
    )
    pooling: Literal["mean", "cls", "last", "max", "mean_sqrt_len"] | None = Field(
        default=None,
        description="Have a model that writes text make embeddings instead, and how the vectors of an input's tokens "
        "become one; embedding models say it themselves.",
    )

    @property
    def weights(self) -> WeightOptions:
        """The form in which the model is served."""
        kv = kv_form.of(self.kv_bits, self.kv_group_size)
        return WeightOptions(self.quantization, self.adapter, self.fuse_adapter, kv)

    @model_validator(mode="after")
    def _packs_and_fuses_something(self) -> Self:
        if self.fuse_adapter and self.adapter is None:
            raise PydanticCustomError("fuse_adapter", "needs an adapter", {"at": ["fuse_adapter"]})
        if self.kv_group_size is not None and self.kv_bits is None:
            raise PydanticCustomError("kv_group_size", "needs kv_bits", {"at": ["kv_group_size"]})
        return self


class Alias(Section):
    """Another name for a served model."""

    name: PublicName = Field(description="Name that clients use; it may be that of a served model, and goes before it.")
    model: PublicName = Field(description="Name of the served model that it means.")
    profile: Profile = Field(
        default=Profile(),
        description="What holds under this name where a request is silent, on top of the profile of the model.",
    )
