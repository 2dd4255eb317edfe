"""What is known of one request of a run. All times are seconds of one monotonic clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer: when text of it arrived, and its tokens.

    What came in one read arrived at once, and some tokens have no text of their own, so arrivals and tokens differ in
    number. `counted` says whether the target told how many tokens there are; else `output_tokens` are pieces of text.
    Of these, `accepted_tokens` were drafted before, out of `drafted_tokens`, as far as the target tells.
    """

    arrivals_s: tuple[float, ...]
    ended_s: float
    output_tokens: int
    prompt_tokens: int | None = None
    counted: bool = True
    text: str = ""
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """`code` is stable, for counting: an error code of the target's, `http_503`, `connection`, `timeout`, …"""

    code: str
    message: str
    ended_s: float


@dataclass(frozen=True, slots=True)
class Record:
    """`due_s` is when the request was to be sent: what a client waits for counts from then, also when we were late."""

    due_s: float
    sent_s: float
    outcome: Answer | Failure

    @property
    def ended_s(self) -> float:
        return self.outcome.ended_s


def first_token_s(due_s: float, answer: Answer) -> float | None:
    """Time to the first text; None where there was no text."""
    return answer.arrivals_s[0] - due_s if answer.arrivals_s else None


def gaps_s(answer: Answer) -> list[float]:
    """Between successive arrivals of text."""
    return [later - earlier for earlier, later in pairwise(answer.arrivals_s)]


def per_output_token_s(answer: Answer) -> float | None:
    """Mean time of a token after the first (TPOT); None below two tokens."""
    if answer.output_tokens < 2 or not answer.arrivals_s:
        return None
    return (answer.arrivals_s[-1] - answer.arrivals_s[0]) / (answer.output_tokens - 1)


def answers(records: Sequence[Record]) -> list[tuple[Record, Answer]]:
    """The records that were answered, with their answers."""
    return [(record, record.outcome) for record in records if isinstance(record.outcome, Answer)]
