"""The sampler a second time, for one row, as its words are: numpy in float64, loops and sorting instead of arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.worker.sampling.randomness import coin, uniform
from mlx_serving.worker.sampling.row import NO_RULES, TokenRules

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where a row is: its prompt, and the whole answer up to the token that was fed."""

    sampling: ResolvedSampling
    seed: int
    prompt: Sequence[int]
    answer: Sequence[int] = ()
    rules: TokenRules = NO_RULES


def edited(logits: Floats, place: Place) -> Floats:
    """After bias, penalties and bans."""
    chosen, answer = place.sampling, list(place.answer)
    logits = logits.astype(np.float64)
    for token, bias in chosen.logit_bias.items():
        logits[token] += bias
    seen = [*place.prompt, *answer]
    window = seen[-chosen.repetition_context_size :] if chosen.repetition_context_size else seen
    for token in set(window):
        factor = chosen.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token, times in Counter(answer).items():
        logits[token] -= chosen.presence_penalty + times * chosen.frequency_penalty
    impossible = set(chosen.banned_token_ids)
    if chosen.allowed_token_ids is not None:
        impossible |= set(range(len(logits))) - set(chosen.allowed_token_ids)
    if len(answer) < chosen.min_tokens:
        impossible |= place.rules.ends
    for *before, last in place.rules.banned:
        if before == answer[len(answer) - len(before) :]:
            impossible.add(last)
    logits[list(impossible)] = -np.inf
    return logits


def distribution(logits: Floats, place: Place) -> Floats:
    """Probabilities of a row that is drawn, after temperature and filters."""
    chosen = place.sampling
    weights = np.exp((logits - logits.max()) / chosen.temperature)
    shares = weights / weights.sum()
    shares = _normalised(shares * likeliest(shares, chosen.top_k, chosen.top_p, chosen.min_p))
    if chosen.typical_p < 1:
        shares = _normalised(shares * typical(shares, chosen.typical_p))
    if coin(place.seed, len(place.answer)) <= chosen.xtc_probability:
        shares = _normalised(shares * ~excluded(shares, chosen.xtc_threshold, place.rules.spared))
    return shares


def likeliest(shares: Floats, top_k: int, top_p: float, min_p: float) -> NDArray[np.bool_]:
    kept = np.zeros(len(shares), dtype=np.bool_)
    before = 0.0
    for rank, token in enumerate(np.argsort(-shares, kind="stable")):
        if (top_k and rank >= top_k) or (top_p < 1 and before >= top_p) or shares[token] < min_p * shares.max():
            break
        kept[token] = True
        before += shares[token]
    return kept


def typical(shares: Floats, mass: float) -> NDArray[np.bool_]:
    possible = np.flatnonzero(shares)
    information = -np.log(shares[possible])
    distance = np.abs(information - (shares[possible] * information).sum())
    kept = np.zeros(len(shares), dtype=np.bool_)
    before = 0.0
    for index in np.argsort(distance, kind="stable"):
        if before >= mass:
            break
        kept[possible[index]] = True
        before += shares[possible[index]]
    return kept


def excluded(shares: Floats, threshold: float, spared: frozenset[int]) -> NDArray[np.bool_]:
    above = [token for token in np.argsort(shares) if shares[token] > threshold]
    removed = np.zeros(len(shares), dtype=np.bool_)
    removed[[token for token in above[1:] if token not in spared]] = True
    return removed


def choices(logits: Floats, place: Place, slack: float = 1e-4) -> set[int]:
    """The token, or the several that rounding may make it: where the number falls within `slack` of a border."""
    logits = edited(logits, place)
    if place.sampling.temperature < 1e-5:
        return set(np.flatnonzero(logits >= logits.max() - slack).tolist())
    ends = np.cumsum(distribution(logits, place))
    number = uniform(place.seed, len(place.answer))
    first, last = np.searchsorted(ends, [number - slack, number + slack])
    return set(range(int(first), min(int(last), len(logits) - 1) + 1))


def _normalised(shares: Floats) -> Floats:
    return shares / shares.sum()
