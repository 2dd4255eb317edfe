"""OpenAI's service tiers as priorities of the queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from mlx_serving.core.generation import Priority

AskedTier: TypeAlias = Literal["auto", "default", "flex", "priority"]
ServedTier: TypeAlias = Literal["default", "flex", "priority"]

_PRIORITIES: Mapping[AskedTier, Priority] = {"flex": "low", "priority": "high"}


def priority_of(asked: AskedTier | None) -> Priority:
    """What is asked for by a tier; no tier, `auto` and `default` ask for nothing."""
    return "normal" if asked is None else _PRIORITIES.get(asked, "normal")


def tier_of(priority: Priority) -> ServedTier:
    """The tier that a priority is told as."""
    match priority:
        case "critical" | "high":
            return "priority"
        case "normal":
            return "default"
        case "low" | "background":
            return "flex"
