"""Which model an alias means, and what it meant before.

    configured ──set──▶ set ──set──▶ set again          what was set wins over what is configured
         ▲               │ ▲             │
         └──roll back────┘ └──roll back──┘
         ◀──remove──────────────────────               at once, and the history is forgotten

An alias may have the name of a model: while it is set, the name means what the alias means. A change of the
configuration changes the aliases that nobody has set; and of those that were set, it ends the ones whose model it
removes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from mlx_serving.core.model_profile import NO_PROFILE, ModelProfile
from mlx_serving.errors import InvalidRequest, NotFound

KEPT = 8
"""Targets of an alias that are remembered, the one that holds included."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an alias means: the name of a served `model`, with a profile. `since` is Unix seconds. A model that was
    served for the sake of the alias comes from `reference`, of that `revision`."""

    model: str
    profile: ModelProfile = NO_PROFILE
    since: float = 0.0
    reference: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class AliasView:
    """An alias for those who ask: `is_set` tells one that was set from one that is only configured; `history` is what
    it meant before, latest first."""

    name: str
    target: Target
    is_set: bool
    configured: Target | None
    history: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class AliasTable:
    """`configured` by name, and what was `set`: for each name its targets, the last one holds."""

    configured: Mapping[str, Target] = field(default_factory=dict[str, Target])
    set: Mapping[str, tuple[Target, ...]] = field(default_factory=dict[str, tuple[Target, ...]])

    def names(self) -> list[str]:
        return list(dict.fromkeys((*self.configured, *self.set)))

    def target(self, name: str) -> Target | None:
        """What the name means; None if it is no alias."""
        targets = self.set.get(name)
        return targets[-1] if targets else self.configured.get(name)

    def history(self, name: str) -> tuple[Target, ...]:
        """What it meant before, latest first."""
        before = tuple(reversed(self.set.get(name, ())[:-1]))
        configured = self.configured.get(name)
        return before if configured is None or name not in self.set else (*before, configured)

    def view(self, name: str) -> AliasView:
        """For a name that is an alias."""
        return AliasView(
            name,
            self.set[name][-1] if name in self.set else self.configured[name],
            name in self.set,
            self.configured.get(name),
            self.history(name),
        )

    def views(self) -> list[AliasView]:
        return [self.view(name) for name in self.names()]

    def with_target(self, name: str, target: Target) -> AliasTable:
        """The name means another model. To set the same again changes only since when."""
        targets = self.set.get(name, ())
        if targets and replace(targets[-1], since=target.since) == target:
            targets = targets[:-1]
        return replace(self, set={**self.set, name: (*targets, target)[-KEPT:]})

    def without(self, name: str) -> AliasTable:
        """What was set is forgotten. Raises `NotFound` if there is no such alias, `InvalidRequest` if it is only
        configured."""
        if name in self.set:
            return replace(self, set={other: targets for other, targets in self.set.items() if other != name})
        if name in self.configured:
            raise InvalidRequest(
                f"The alias {name!r} is configured (models.aliases): it goes with the configuration",
                field="name",
                given=name,
            )
        raise _unknown(name, self)

    def rolled_back(self, name: str, *, is_served: bool) -> AliasTable:
        """The name means what it meant before: that is the model itself where one `is_served` under the name. Raises
        `NotFound` if there is no such alias, and `InvalidRequest` if nothing was before."""
        if self.target(name) is None:
            raise _unknown(name, self)
        targets = self.set.get(name, ())
        if len(targets) > 1:
            return replace(self, set={**self.set, name: targets[:-1]})
        if targets and (name in self.configured or is_served):
            return self.without(name)
        raise InvalidRequest(f"The alias {name!r} meant nothing before: there is no way back", field="name", given=name)

    def reconfigured(
        self, configured: Mapping[str, Target], served: Collection[str]
    ) -> tuple[AliasTable, Mapping[str, Target]]:
        """With another configuration, in which the models `served` are; and what was set and is ended by it."""
        kept: dict[str, tuple[Target, ...]] = {}
        ended: dict[str, Target] = {}
        for name, targets in self.set.items():
            if targets[-1].model in served:
                kept[name] = tuple(target for target in targets if target.model in served)
            else:
                ended[name] = targets[-1]
        return AliasTable(configured, kept), ended


def _unknown(name: str, table: AliasTable) -> NotFound:
    listed = ", ".join(table.names()) or "no alias"
    return NotFound(f"There is no alias {name!r}; there is: {listed}", name=name, aliases=table.names())
