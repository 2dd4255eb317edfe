"""What the index of prefixes holds and says: its entries, which of them goes first, what it finds, what it counts."""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

_USE_WORTH_S = 30.0  # each use counts as if the last one had been so much later
_MOST_USES = 20

MissReason: TypeAlias = Literal["absent", "differs", "evicted"]
"""Why no more was found. `absent`: nothing that is kept goes on from there. `differs`: what is kept goes on with other
tokens. `evicted`: it was kept, and had to go."""


@dataclass(slots=True, eq=False)
class Entry:
    """`token_ids` are the block's own, of a state those behind the last whole block; `end` counts all tokens up to
    them. `parent` is the block before; a state has none."""

    key: bytes
    place: bytes
    token_ids: tuple[int, ...]
    end: int
    size: int
    owner: str
    is_state: bool
    parent: Entry | None
    last_used: float
    uses: int = 0
    children: int = 0
    kept: bool = True
    ticket: int = 0

    @property
    def worth(self) -> float:
        return self.last_used + _USE_WORTH_S * min(self.uses, _MOST_USES)


class LeavingOrder:
    """Entries in the order in which they go: those at the ends of the tree, worth least first. An entry is filed again
    when that changes; what was filed of it before counts no more."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []  # with outdated items in it
        self._tickets = itertools.count(1)

    def file(self, entry: Entry, *, among: int) -> None:
        """Note what it is worth, if it may go; `among` so many entries that are kept."""
        if entry.children or not entry.kept:
            return
        entry.ticket = next(self._tickets)
        heapq.heappush(self._heap, (entry.worth, entry.ticket, entry))
        if len(self._heap) > 4 * among + 64:
            self._heap = [item for item in self._heap if _may_go(item[2], item[1])]
            heapq.heapify(self._heap)

    def take(self) -> Entry | None:
        """The one that goes first, which is filed no more."""
        while self._heap:
            _, ticket, entry = heapq.heappop(self._heap)
            if _may_go(entry, ticket):
                return entry
        return None


def _may_go(entry: Entry, ticket: int) -> bool:
    return entry.kept and entry.ticket == ticket and not entry.children


class Departed:
    """The entries that had to go for want of room, to tell why something is not found: the latest `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: OrderedDict[bytes, bytes] = OrderedDict()  # by the keys of entries
        self._at: dict[bytes, dict[bytes, array[int]]] = {}

    def add(self, entry: Entry) -> None:
        self._places[entry.key] = entry.place
        self._at.setdefault(entry.place, {})[entry.key] = array("q", entry.token_ids)
        if len(self._places) > self._most:
            self.discard(next(iter(self._places)))

    def discard(self, key: bytes) -> None:
        """What had this key is there again."""
        place = self._places.pop(key, None)
        if place is not None:
            del self._at[place][key]
            if not self._at[place]:
                del self._at[place]

    def at(self, place: bytes) -> Iterable[Sequence[int]]:
        """The own tokens of those that stood behind this key."""
        return self._at.get(place, {}).values()


@dataclass(frozen=True, slots=True)
class Match:
    """What is kept of a sequence: `tokens` of it, in `entries`, of the last of which perhaps not all are used."""

    tokens: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Insertion:
    """`added` entries are to be filled, each with the KV of the tokens before its `end`; `gone` are to be dropped."""

    added: list[Entry] = field(default_factory=list[Entry])
    gone: list[Entry] = field(default_factory=list[Entry])


@dataclass(slots=True)
class PrefixCounts:
    """Since the start. `hits` are lookups that found anything; tokens are those of prompts."""

    hits: int = 0
    misses: int = 0
    hit_tokens: int = 0
    missed_tokens: int = 0
    evictions: int = 0
