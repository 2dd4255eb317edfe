"""Which beginnings of prompts are computed in one forward pass.

A pass computes as many tokens for each of its rows as the longest has; what it computes for padding is thrown away. But
a pass of its own reads all weights again. So prompts of similar length share a pass, as long as the padding costs less
than the passes it saves.
"""

from __future__ import annotations

from collections.abc import Sequence


def passes(lengths: Sequence[int], pass_tokens: int) -> list[list[int]]:
    """Indices of `lengths` (tokens), grouped so that all passes together cost least.

    A pass costs `pass_tokens` and its rows times the longest of them. In the best grouping passes are cuts of the order
    by length, so each beginning of that order is solved from those before it.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    costs = [0]  # of the first n of that order
    firsts = [0]  # where the last pass of the first n begins
    for end in range(1, len(order) + 1):
        cost, first = min(
            (costs[first] + pass_tokens + (end - first) * lengths[order[first]], first) for first in range(end)
        )
        costs.append(cost)
        firsts.append(first)
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[firsts[end] : end])
        end = firsts[end]
    return groups[::-1]
