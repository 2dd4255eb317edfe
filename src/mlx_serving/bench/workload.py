"""What is asked of a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import TypeAlias

from mlx_serving.core.bounds import at_least, greater_than
from mlx_serving.core.schedule.arrivals import poisson_times

SAMPLED: Mapping[str, float] = {"temperature": 0.8, "top_p": 0.95, "frequency_penalty": 0.3}
GREEDY: Mapping[str, float] = {"temperature": 0.0}


class Sampling(StrEnum):
    """Which requests are sampled, with `SAMPLED`; the others are greedy."""

    GREEDY = "greedy"
    MIXED = "mixed"  # three in four are sampled
    SAMPLED = "sampled"

    def params(self, index: int) -> Mapping[str, float]:
        """Of the request with that number."""
        sampled = self is Sampling.SAMPLED or (self is Sampling.MIXED and index % 4 != 3)
        return SAMPLED if sampled else GREEDY


class Endpoint(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of one run: how many, how long in tokens, how sampled."""

    requests: int = 32
    prompt_tokens: int = 128
    output_tokens: int = 64
    sampling: Sampling = Sampling.GREEDY
    endpoint: Endpoint = Endpoint.COMPLETIONS
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("requests", self.requests, 1)
        at_least("prompt_tokens", self.prompt_tokens, 1)
        at_least("output_tokens", self.output_tokens, 1)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `sampling` has the names of OpenAI's API."""

    prompt: str
    max_tokens: int
    endpoint: Endpoint
    sampling: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Closed:
    """`concurrency` clients, each of which sends its next request when the last one is answered."""

    concurrency: int

    def __post_init__(self) -> None:
        at_least("concurrency", self.concurrency, 1)

    def __str__(self) -> str:
        return f"{self.concurrency} concurrent"


@dataclass(frozen=True, slots=True)
class Open:
    """Requests arrive as a Poisson process of `rate` a second, whether or not the earlier ones are answered."""

    rate: float

    def __post_init__(self) -> None:
        greater_than("rate", self.rate, 0)

    def times(self, count: int, seed: int) -> Sequence[float]:
        """When each request is due, in seconds from the start."""
        random = Random(seed)  # noqa: S311  a load to be repeated, no secret
        return tuple(poisson_times((random.random() for _ in range(count)), self.rate))

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s"


Load: TypeAlias = Closed | Open


def asks_of(workload: Workload, prompts: Sequence[str]) -> list[Ask]:
    return [
        Ask(prompt, workload.output_tokens, workload.endpoint, workload.sampling.params(index))
        for index, prompt in enumerate(prompts)
    ]
