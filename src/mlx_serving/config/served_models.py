"""The section `models`: what is served, under which names, and which of them is the default.

What is left out follows from what is given: without `served`, the default is what is served; without `default`, the
first served model is the default; without `name`, a model is called after its reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self, TypeGuard, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.origin import Path
from mlx_serving.config.profiles import Profile
from mlx_serving.core import kv_form
from mlx_serving.core.idle_time import idle_time
from mlx_serving.core.model_room import RoomPolicy
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest

EMBEDDED_MODEL = "smollm2-135m"

_ROOM = RoomPolicy()

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

NO_SPACES = r"^[^\s\x00-\x1f\x7f]+$"

Reference = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
PublicName = Annotated[str, Field(min_length=1, max_length=256, pattern=NO_SPACES)]


def _one_of(allowed: tuple[int, ...]) -> Callable[[int], int]:
    def check(given: int) -> int:
        if given not in allowed:
            numbers = ", ".join(map(str, allowed))
            raise PydanticCustomError(
                "one_of", "must be one of {numbers}, got {given}", {"numbers": numbers, "given": given}
            )
        return given

    return check


def _idle_time(given: object) -> float:
    try:
        return idle_time(given, "keep_alive_s")
    except InvalidRequest as error:
        raise PydanticCustomError(
            "keep_alive", "{reason}", {"reason": error.message.removeprefix("keep_alive_s ")}
        ) from None


IdleTime = Annotated[float, Field(ge=-1), BeforeValidator(_idle_time)]
"""Seconds, negative for ever."""

ParserName = Annotated[str, Field(min_length=1, max_length=64, pattern=NO_SPACES)]


def public_name(reference: str) -> str:
    """The name a model goes by when none is given.

    A hub id or an alias is its own name; a directory is called after its last part, a GGUF file after its stem.
    """
    is_file = reference.lower().endswith(".gguf")
    if _HUB_ID.fullmatch(reference) and not is_file:
        return reference
    path = PurePosixPath(reference)
    return re.sub(r"\s+", "-", (path.stem if is_file else path.name).strip()) or reference


def default_name(reference: str, adapter: str | None) -> str:
    """The name of a model with an adapter is the model's, a colon, and the adapter's directory."""
    name = public_name(reference)
    if adapter is None:
        return name
    directory = re.sub(r"\s+", "-", PurePosixPath(adapter).name)
    return f"{name}:{directory}"


def _name_from(validated: Mapping[str, object]) -> str:
    adapter = validated.get("adapter")
    return default_name(str(validated["model"]), adapter if isinstance(adapter, str) else None)


def _known_quantization(text: str | None) -> str | None:
    try:
        return WeightOptions(text).quantization
    except InvalidRequest as error:
        raise PydanticCustomError(
            "quantization", "{reason}", {"reason": error.message.removeprefix("quantization").lstrip(": ")}
        ) from None


class ServedModel(BaseModel):
    """A model that clients can name."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: Reference = Field(
        description="Hub id, directory of an MLX model, path of a GGUF file (both relative to the working directory), "
        "or alias."
    )
    quantization: Annotated[str | None, AfterValidator(_known_quantization)] = Field(
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


class Alias(BaseModel):
    """Another name for a served model."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: PublicName = Field(description="Name that clients use; it may be that of a served model, and goes before it.")
    model: PublicName = Field(description="Name of the served model that it means.")
    profile: Profile = Field(
        default=Profile(),
        description="What holds under this name where a request is silent, on top of the profile of the model.",
    )


def _patched(entries: list[dict[str, object]], patch: Mapping[object, object], at: str) -> list[object]:
    """`entries` with those named by index changed or appended; an index that would leave a gap is an error."""
    result: list[object] = list(entries)
    for index in sorted(int(str(key)) for key in patch):
        change = patch[str(index)]
        if index > len(result):
            raise PydanticCustomError(
                "list_gap",
                "index {index} leaves a gap: the next free index is {free}",
                {"index": index, "free": len(result), "at": [at, index]},
            )
        if index == len(result):
            result.append(change)
        else:
            is_table = isinstance(change, Mapping)
            result[index] = {**entries[index], **cast("Mapping[str, object]", change)} if is_table else change
    return result


def _is_patch(value: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and key.isascii() and key.isdecimal() for key in cast("Mapping[object, object]", value)
    )


def _names(served: object) -> list[tuple[str, str]]:
    """`(name, reference)` of each entry as far as they are well-formed; what is not is reported by its own field."""
    pairs: list[tuple[str, str]] = []
    for entry in cast("Sequence[object]", served) if isinstance(served, list | tuple) else ():
        if isinstance(entry, ServedModel):
            pairs.append((entry.name, entry.model))
        elif isinstance(entry, Mapping):
            fields = cast("Mapping[str, object]", entry)
            model, name, adapter = fields.get("model"), fields.get("name"), fields.get("adapter")
            if isinstance(model, str):
                made = default_name(model, adapter if isinstance(adapter, str) else None)
                pairs.append((name if isinstance(name, str) else made, model))
    return pairs


class ModelsConfig(BaseModel):
    """The models that clients can name."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    default: Reference = Field(
        default=EMBEDDED_MODEL,
        description="Name of the model that answers requests without `model`. It may be given as a reference; "
        "without `served` it is what is served. By default the first of `served`.",
    )
    served: tuple[ServedModel, ...] = Field(
        default=(ServedModel(model=EMBEDDED_MODEL),), min_length=1, description="The models that clients can name."
    )
    aliases: tuple[Alias, ...] = Field(
        default=(), description="Other names for served models, which `PUT /admin/aliases/NAME` can move."
    )
    alias_file: str | None = Field(
        default=None,
        min_length=1,
        description="JSON file that remembers aliases that were set while it served; null forgets them at the end.",
    )
    keep_alive_s: IdleTime | None = Field(
        default=None,
        description="How long a model stays in memory when nobody uses it: seconds, or a text like `5m` or `1h30m`; "
        "negative is for ever, null as long as nobody needs the memory.",
    )
    prefetch: bool = Field(
        default=True,
        description="Whether the files of the model that is likely to be wanted next are read into the system's page "
        "cache, as far as memory is free.",
    )
    drain_timeout_s: float = Field(
        default=_ROOM.drain_timeout_s,
        ge=0,
        le=86_400,
        description="How long a model that needs memory waits for the users of one that has it, in seconds; then it is "
        "refused, and they go on.",
    )
    trusted_paths: str | None = Field(
        default=None,
        max_length=65_536,
        description="Folders, separated by `:` as in `$PATH`, that administrative requests may load models and "
        "adapters from, links followed. Empty is no folder (models of the hub only), null is any.",
    )

    def _check_aliases(self, served: Sequence[str]) -> None:
        names: list[str] = []
        for index, alias in enumerate(self.aliases):
            if alias.name in names:
                raise PydanticCustomError(
                    "duplicate_name",
                    "must be unique, but entry {first} is called '{name}', too",
                    {"first": names.index(alias.name), "name": alias.name, "at": ["aliases", index, "name"]},
                )
            names.append(alias.name)
            if alias.model not in served:
                raise PydanticCustomError(
                    "not_served",
                    "must be one of the served names ({names}), got '{given}'",
                    {
                        "names": ", ".join(served),
                        "given": alias.model,
                        "known": list(served),
                        "at": ["aliases", index, "model"],
                    },
                )

    def _check_draft_models(self, names: Sequence[str]) -> None:
        profiles = [("served", index, model.profile) for index, model in enumerate(self.served)]
        profiles += [("aliases", index, alias.profile) for index, alias in enumerate(self.aliases)]
        for section, index, profile in profiles:
            if profile.draft_model is not None and profile.draft_model not in names:
                raise PydanticCustomError(
                    "not_served",
                    "must be one of the served names ({names}), got '{given}'",
                    {
                        "names": ", ".join(names),
                        "given": profile.draft_model,
                        "known": list(names),
                        "at": [section, index, "profile", "draft_model"],
                    },
                )

    @property
    def room(self) -> RoomPolicy:
        """How models make room for each other."""
        return RoomPolicy(drain_timeout_s=self.drain_timeout_s, keep_alive_s=self.keep_alive_s)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        data = dict(cast("Mapping[str, object]", given))
        default, served = data.get("default"), data.get("served")
        if served is None:
            served = cast("object", {})
        if _is_patch(served):
            reference = default if isinstance(default, str) else EMBEDDED_MODEL
            served = _patched([{"model": reference}], served, "served")
        data["served"] = served
        if _is_patch(data.get("aliases")):
            data["aliases"] = _patched([], cast("Mapping[object, object]", data["aliases"]), "aliases")
        names = _names(served)
        if default is None:
            data["default"] = names[0][0] if names else EMBEDDED_MODEL
        elif default not in [name for name, _ in names]:
            data["default"] = next((name for name, reference in names if reference == default), default)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> ModelsConfig:
        names: list[str] = []
        for index, entry in enumerate(self.served):
            if entry.name in names:
                raise PydanticCustomError(
                    "duplicate_name",
                    "must be unique, but entry {first} is called '{name}', too",
                    {"first": names.index(entry.name), "name": entry.name, "at": ["served", index, "name"]},
                )
            names.append(entry.name)
        self._check_aliases(names)
        names += [alias.name for alias in self.aliases]
        self._check_draft_models(names)
        if self.default not in names:
            raise PydanticCustomError(
                "not_served",
                "must be one of the served names ({names}), got '{given}'",
                {"names": ", ".join(names), "given": self.default, "known": names, "at": ["default"]},
            )
        return self


def follows(path: Path) -> Path | None:
    """The setting that the one at `path` follows from where nobody gave it."""
    match path:
        case ("models", "default"):
            return ("models", "served", "0", "name")
        case ("models", "served", index, "name"):
            return ("models", "served", index, "model")
        case ("models", "served", "0", "model"):
            return ("models", "default")
        case _:
            return None
