"""What a changed configuration asks of a server that runs: a pure function of the old one and the new one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import cast

from mlx_serving.config.model_entries import ServedModel
from mlx_serving.config.origin import dotted
from mlx_serving.config.schema import Config
from mlx_serving.config.tree import leaves

_SERVER_AT_START = ("host", "port", "tls_cert", "tls_key", "resume_file", "resume_max_age_s")
_STORED_AT_START = ("max_entries", "max_bytes", "ttl_s", "path")
_AT_START_ONLY = (
    *(f"server.{name}" for name in _SERVER_AT_START),
    "workers",
    "models.alias_file",
    *(f"stored_responses.{name}" for name in _STORED_AT_START),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A setting that only a start can change: `value` holds until then, instead of the `wanted` one."""

    path: str
    value: object
    wanted: object


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `config` is what holds then, which is the new one but for what is `kept`.

    `changed` are the paths of the settings that differ and are applied, without `models.served`: of that tell `added`,
    `removed` and `replaced`. `to_load` are the names of models that shall be in memory and were not wanted there
    before. `fresh_worker`: the one that runs was started with settings that do not hold any more.
    """

    config: Config
    changed: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    added: tuple[ServedModel, ...] = ()
    removed: tuple[ServedModel, ...] = ()
    replaced: tuple[ServedModel, ...] = ()
    to_load: tuple[str, ...] = ()
    fresh_worker: bool = False


def plan(old: Config, new: Config) -> Plan:
    """How to get from `old`, which holds now, to `new`."""
    was, wanted = _settings(old), _settings(new)
    kept = tuple(Kept(path, was[path], wanted[path]) for path in _AT_START_ONLY if was[path] != wanted[path])
    server = new.server.model_copy(update={name: getattr(old.server, name) for name in _SERVER_AT_START})
    models = new.models.model_copy(update={"alias_file": old.models.alias_file})
    before = {model.name: model for model in old.models.served}
    after = {model.name: model for model in new.models.served}
    common = [(before[name], after[name]) for name in after if name in before]
    added = tuple(model for name, model in after.items() if name not in before)
    resident = {model.name for model in old.models.served if model.preload} | {old.models.default}
    return Plan(
        config=new.model_copy(
            update={
                "server": server,
                "workers": old.workers,
                "models": models,
                "stored_responses": old.stored_responses,
            }
        ),
        changed=(
            *(path for path in was if was[path] != wanted[path] and path not in _AT_START_ONLY),
            *(("models.aliases",) if old.models.aliases != new.models.aliases else ()),
            *(f"models.served ({new.name})" for old, new in common if old != new and _version(old) == _version(new)),
        ),
        kept=kept,
        added=added,
        removed=tuple(model for name, model in before.items() if name not in after),
        replaced=tuple(new for old, new in common if _version(old) != _version(new)),
        to_load=tuple(
            model.name
            for model in new.models.served
            if (model.preload or model.name == new.models.default) and model.name not in resident
        ),
        fresh_worker=_given_to_worker(old) != _given_to_worker(new),
    )


def without(done: Plan, old: Config, failed: Collection[str]) -> Plan:
    """The plan as it was carried out, where the models named `failed` could not be replaced: the versions that `old`
    has of them stay."""
    before = {model.name: model for model in old.models.served}
    served = tuple(before[model.name] if model.name in failed else model for model in done.config.models.served)
    models = done.config.models.model_copy(update={"served": served})
    return replace(
        done,
        config=done.config.model_copy(update={"models": models}),
        replaced=tuple(model for model in done.replaced if model.name not in failed),
    )


def _settings(config: Config) -> Mapping[str, object]:
    """Every value by its dotted path, secrets included: they are compared, and never leave this module."""
    found = {dotted(path): value for path, value in leaves(cast("object", config.model_dump()))}
    lists = ("models.served.", "models.aliases.")
    return {path: value for path, value in found.items() if not path.startswith(lists)}


def _version(model: ServedModel) -> object:
    """What makes another version of a model. Whether it is preloaded does not."""
    return model.model, model.revision, model.weights, model.context_length, model.tool_parser, model.reasoning_parser


def _given_to_worker(config: Config) -> object:
    """What a worker gets when it starts."""
    worker = config.worker
    return (
        config.scheduler.policy,
        config.generation.sampling_defaults,
        config.memory,
        config.prefix_cache,
        worker.python,
        worker.blas,
        worker.max_message_bytes,
        worker.heartbeat_interval_s,
    )
