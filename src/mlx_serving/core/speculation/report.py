"""Whether one model may draft for another, and what that could bring.

A draft is checked by the model it is for, so a bad one costs time and never changes the text. What it must not do is
mean other words by the same ids: then nothing it proposes is ever right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

ASSUMED_ACCEPTANCE = 0.7
"""Which part of the drafted tokens the estimate takes to be right. The counters of requests tell what it really is."""

_MOST_DRAFTED = 8
_WORTH = 1.1


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`ids` by token; those in `special` are no part of a text. `eos` end a turn, `bos` begins a text, if one does."""

    ids: Mapping[str, int]
    special: frozenset[str]
    eos: frozenset[int]
    bos: int | None


@dataclass(frozen=True, slots=True)
class PairMember:
    """`can_draft`: whether it can take tokens back. `memory_bytes` are its weights', which a step reads."""

    id: str
    vocab_size: int
    parameter_count: int
    architecture: str
    memory_bytes: int
    can_draft: bool
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class ReportedModel:
    """`vocab_size` counts logits: some vocabularies are padded."""

    id: str
    vocab_size: int | None
    parameter_count: int
    architecture: str


@dataclass(frozen=True, slots=True)
class PerformanceEstimate:
    """For people: like `1.85x`, and `25.0%` of the parameters. `N/A` where there is nothing to say."""

    expected_speedup: str
    size_ratio: str
    recommendation: str


@dataclass(frozen=True, slots=True)
class ReportDetails:
    primary_model: ReportedModel
    draft_model: ReportedModel
    performance_estimate: PerformanceEstimate


@dataclass(frozen=True, slots=True)
class CompatibilityReport:
    """Of a pair that is not `compatible`, `errors` say why; `warnings` are what may make drafts worse."""

    compatible: bool
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    details: ReportDetails

    def called(self, primary: str, draft: str) -> CompatibilityReport:
        """The same with the names that callers know the models by."""
        details = replace(
            self.details,
            primary_model=replace(self.details.primary_model, id=primary),
            draft_model=replace(self.details.draft_model, id=draft),
        )
        return replace(self, details=details)


def compare(primary: PairMember, draft: PairMember) -> CompatibilityReport:
    """What is to be said of `draft` drafting for `primary`."""
    errors = tuple(_errors(primary, draft))
    details = ReportDetails(_reported(primary), _reported(draft), _estimate(primary, draft, possible=not errors))
    return CompatibilityReport(not errors, errors, tuple(_warnings(primary, draft)), details)


def speedup(cost: float, acceptance: float, drafted: int) -> float:
    """How many times as fast it goes, if a drafted token costs `cost` of a step, and each of the `drafted` ones is
    right with probability `acceptance` (below 1) where all before it were."""
    tokens = (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
    return tokens / (1 + drafted * cost)


def _errors(primary: PairMember, draft: PairMember) -> Iterator[str]:
    if not primary.can_draft:
        yield "The primary model cannot take tokens back: nothing can be drafted for it"
    if not draft.can_draft:
        yield "The draft model cannot take tokens back: it cannot draft"
    if primary.vocab_size != draft.vocab_size:
        yield f"The vocabularies differ in size: {primary.vocab_size} and {draft.vocab_size}"
    clashes = _clashes(primary.vocabulary, draft.vocabulary, special=False)
    if clashes:
        yield _told(clashes, "The vocabularies differ")


def _warnings(primary: PairMember, draft: PairMember) -> Iterator[str]:
    mine, other = primary.vocabulary, draft.vocabulary
    if clashes := _clashes(mine, other, special=True):
        yield _told(clashes, "Special tokens differ")
    if unknown := len(set(mine.ids.values()) - set(other.ids.values())):
        yield f"The draft model does not know {unknown} of the primary model's {len(mine.ids)} tokens"
    if mine.eos != other.eos:
        yield f"The tokens that end a turn differ: {sorted(mine.eos)} and {sorted(other.eos)}"
    if mine.bos != other.bos:
        yield f"The tokens that begin a text differ: {mine.bos} and {other.bos}"
    if primary.architecture != draft.architecture:
        yield f"The architectures differ: {primary.architecture} and {draft.architecture}"
    if draft.parameter_count >= primary.parameter_count:
        yield (
            f"The draft model is not smaller: {draft.parameter_count} parameters, the primary model has "
            f"{primary.parameter_count}"
        )


def _clashes(primary: Vocabulary, draft: Vocabulary, *, special: bool) -> list[tuple[int, str, str]]:
    """Ids that both have and that mean different tokens; with `special`, those where either is a special one."""
    if primary.ids == draft.ids:
        return []
    meant = {token_id: token for token, token_id in draft.ids.items()}
    pairs = ((token_id, token, meant.get(token_id, token)) for token, token_id in primary.ids.items())
    differing = (each for each in pairs if each[1] != each[2])
    return [each for each in differing if (each[1] in primary.special or each[2] in draft.special) is special]


def _told(clashes: list[tuple[int, str, str]], what: str) -> str:
    token_id, mine, other = min(clashes)
    return f"{what} in {len(clashes)} ids: the first, {token_id}, is {mine!r} to the primary and {other!r} to the draft"


def _reported(model: PairMember) -> ReportedModel:
    return ReportedModel(model.id, model.vocab_size, model.parameter_count, model.architecture)


def _estimate(primary: PairMember, draft: PairMember, *, possible: bool) -> PerformanceEstimate:
    sized = primary.parameter_count > 0 and primary.memory_bytes > 0
    ratio = f"{draft.parameter_count / primary.parameter_count:.1%}" if sized else "N/A"
    if not possible:
        return PerformanceEstimate("N/A", ratio, "not possible, see the errors")
    if not sized:
        return PerformanceEstimate("N/A", ratio, "the size of the primary model is not known")
    cost = draft.memory_bytes / primary.memory_bytes
    best = max(speedup(cost, ASSUMED_ACCEPTANCE, drafted) for drafted in range(1, _MOST_DRAFTED + 1))
    verdict = "worth trying" if best >= _WORTH else "not worth it"
    return PerformanceEstimate(
        f"{best:.2f}x",
        ratio,
        f"{verdict}: {best:.2f}x if {ASSUMED_ACCEPTANCE:.0%} of the drafted tokens are right and reading the weights "
        "is what takes time; the counters of real requests tell better",
    )
