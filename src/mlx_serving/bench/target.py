"""What is measured: anything that answers requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mlx_serving.bench.records import Answer
from mlx_serving.bench.workload import Ask

Count = Callable[[str], Awaitable[int]]
"""The number of tokens of a text."""


class RequestFailed(Exception):
    """A request was not answered. `code` is what failures are counted by."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """`name` as in the report, `model` as the target calls it, `facts` about the machine and versions it runs on."""

    name: str
    model: str
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


class Target(Protocol):
    @property
    def about(self) -> TargetFacts: ...

    @property
    def count_tokens(self) -> Count | None:
        """The target's own tokenizer, where it can be asked."""
        ...

    async def send(self, ask: Ask) -> Answer:
        """Send one request and read its answer to the end. Raises `RequestFailed`."""
        ...
