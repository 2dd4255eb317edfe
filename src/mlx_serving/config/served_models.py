"""The section `models`: what is served, under which names, and which of them is the default.

What is left out follows from what is given: without `served`, the default is what is served; without `default`, the
first served model is the default; without `name`, a model is called after its reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard, cast

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.fields import IdleTime, Reference, Section
from mlx_serving.config.model_entries import Alias, ServedModel
from mlx_serving.config.model_names import EMBEDDED_MODEL, default_name
from mlx_serving.config.origin import Path
from mlx_serving.core.model_room import RoomPolicy

_ROOM = RoomPolicy()


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


def _require_unused(name: str, names: Sequence[str], section: str, index: int) -> None:
    if name in names:
        raise PydanticCustomError(
            "duplicate_name",
            "must be unique, but entry {first} is called '{name}', too",
            {"first": names.index(name), "name": name, "at": [section, index, "name"]},
        )


def _require_served(given: str, names: Sequence[str], *at: str | int) -> None:
    if given not in names:
        raise PydanticCustomError(
            "not_served",
            "must be one of the served names ({names}), got '{given}'",
            {"names": ", ".join(names), "given": given, "known": list(names), "at": list(at)},
        )


class ModelsConfig(Section):
    """The models that clients can name."""

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
            _require_unused(alias.name, names, "aliases", index)
            names.append(alias.name)
            _require_served(alias.model, served, "aliases", index, "model")

    def _check_draft_models(self, names: Sequence[str]) -> None:
        profiles = [("served", index, model.profile) for index, model in enumerate(self.served)]
        profiles += [("aliases", index, alias.profile) for index, alias in enumerate(self.aliases)]
        for section, index, profile in profiles:
            if profile.draft_model is not None:
                _require_served(profile.draft_model, names, section, index, "profile", "draft_model")

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
            _require_unused(entry.name, names, "served", index)
            names.append(entry.name)
        self._check_aliases(names)
        names += [alias.name for alias in self.aliases]
        self._check_draft_models(names)
        _require_served(self.default, names, "default")
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
