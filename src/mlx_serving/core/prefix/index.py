"""Which beginnings of sequences are kept to be used again, and which of them go when room is short.

Two kinds of entries, because caches are of two kinds:

    block   the KV of up to `block_tokens` tokens. It needs the blocks before it; a tree of blocks holds many sequences,
            and what they have in common once. Of a block, any number of first tokens can be used. Only whole blocks
            have others behind them.
    state   all that a cache holds after some number of tokens, for caches that cannot be cut. It stands for itself, and
            is of use only to sequences that begin with exactly these tokens.

An entry is worth as much as it was used lately and often. Blocks go from the ends of the tree: none goes while another
one needs it.

Sizes are bytes, times monotonic seconds. No I/O, no clock: what entries stand for is kept elsewhere, under their keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_serving.core.bounds import at_least, between
from mlx_serving.core.prefix.entries import Departed, Entry, Insertion, LeavingOrder, Match, MissReason, PrefixCounts
from mlx_serving.core.prefix.token_chain import TokenChain, common

_REMEMBERED = 4096  # entries that went


@dataclass(frozen=True, slots=True)
class PrefixCachePolicy:
    """`memory_bytes` bounds what is kept, None is half of the memory for KV caches; running sequences take what they
    need of it. With `per_caller`, callers share nothing with each other."""

    enabled: bool = True
    memory_bytes: int | None = None
    block_tokens: int = 64
    per_caller: bool = False

    def __post_init__(self) -> None:
        if self.memory_bytes is not None:
            at_least("memory_bytes", self.memory_bytes, 0)
        between("block_tokens", self.block_tokens, 16, 256)


class PrefixIndex:
    def __init__(self) -> None:
        self.counts = PrefixCounts()
        self.size = 0
        self._entries: dict[bytes, Entry] = {}
        self._states: dict[bytes, Entry] = {}
        # By the key before them: partial and whole blocks, and states.
        self._blocks_at: dict[bytes, list[Entry]] = {}
        self._states_at: dict[bytes, list[Entry]] = {}
        self._leaving = LeavingOrder()
        self._evicted = Departed(_REMEMBERED)

    def __len__(self) -> int:
        return len(self._entries) + len(self._states)

    def __iter__(self) -> Iterator[Entry]:
        return itertools.chain(self._entries.values(), self._states.values())

    def match(self, chain: TokenChain, *, states: bool) -> Match:
        """The most that is kept of a sequence, but not its last token: that one is computed in any case.

        `states`: its model's caches cannot be cut.
        """
        return self._match_state(chain) if states else self._match_blocks(chain)

    def reason(self, chain: TokenChain, matched: int, *, states: bool) -> MissReason | None:
        """Why no more than `matched` tokens of a sequence were found; None if more cannot be used."""
        most = len(chain) - 1
        if matched >= most:
            return None
        if (self._had_state if states else self._had_block)(chain, matched, most):
            return "evicted"
        blocks, count = divmod(matched, chain.block_tokens)
        place = chain.keys[blocks]
        known = [*self._blocks_at.get(place, ()), *self._states_at.get(place, ())]
        return "differs" if any(len(entry.token_ids) > count for entry in known) else "absent"

    def use(self, match: Match, prompt_tokens: int, now: float) -> None:
        """A sequence of `prompt_tokens` begins with what was found."""
        counts = self.counts
        if match.tokens:
            counts.hits += 1
        else:
            counts.misses += 1
        counts.hit_tokens += match.tokens
        counts.missed_tokens += prompt_tokens - match.tokens
        for entry in match.entries:
            self._touch(entry, now)

    def insert_blocks(
        self, chain: TokenChain, end: int, *, tail: bool, token_bytes: int, limit: float, now: float, begin: int = 0
    ) -> Insertion:
        """Keep the first `end` tokens of a sequence, `token_bytes` each, as far as `limit` bytes in all allow. With
        `tail`, also those behind the last whole block. The first `begin`, whole blocks, must be kept: without them
        nothing is added."""
        insertion = Insertion()
        path: list[Entry] = []
        block = chain.block_tokens
        if begin:
            before = self._entries.get(chain.keys[begin // block])
            if before is None:
                return insertion
            path.append(before)
        for start in range(begin, end, block):
            stop = min(start + block, end)
            if stop - start < block and not tail:
                break
            key, place = chain.key_of(stop), chain.keys[start // block]
            entry = self._entries.get(key)
            if entry is None:
                token_ids = tuple(chain.token_ids[start:stop])
                if stop - start < block and self._is_covered(place, token_ids):
                    break
                size = (stop - start) * token_bytes
                insertion.gone.extend(self._make_room(limit - size, spared=path[-1] if path else None))
                if self.size + size > limit:
                    break
                parent = path[-1] if path else None
                entry = Entry(key, place, token_ids, stop, size, chain.owner, False, parent, now)
                insertion.gone.extend(self._superseded(entry))
                self._add(entry)
                insertion.added.append(entry)
            else:
                self._refresh(entry, now)
            path.append(entry)
        return insertion

    def insert_state(self, chain: TokenChain, end: int, *, size: int, limit: float, now: float) -> Insertion:
        """Keep the state after the first `end` tokens of a sequence, if `limit` bytes in all allow it."""
        insertion = Insertion()
        key = chain.key_of(end)
        known = self._states.get(key)
        if known is not None:
            self._refresh(known, now)
            return insertion
        if size > limit:
            return insertion
        insertion.gone.extend(self._make_room(limit - size))
        blocks = end // chain.block_tokens
        token_ids = tuple(chain.token_ids[blocks * chain.block_tokens : end])
        entry = Entry(key, chain.keys[blocks], token_ids, end, size, chain.owner, True, None, now)
        self._add(entry)
        insertion.added.append(entry)
        return insertion

    def evict(self, limit: float) -> list[Entry]:
        """Let go of what is worth least until no more than `limit` bytes are kept."""
        return self._make_room(limit)

    def drop(self, owner: str) -> list[Entry]:
        """Let go of everything of a model."""
        gone = [entry for entry in self if entry.owner == owner]
        # Another model of the same files may have gone on behind its blocks.
        known = set(map(id, gone))
        for entry in sorted(self._entries.values(), key=lambda one: one.end):
            if entry.parent is not None and id(entry.parent) in known and id(entry) not in known:
                known.add(id(entry))
                gone.append(entry)
        for entry in sorted(gone, key=lambda one: -one.end):
            self._remove(entry)
        return gone

    def blocks(self, chain: TokenChain, start: int, end: int) -> list[Entry] | None:
        """The blocks that hold these tokens of a sequence, whose whole blocks end before `end` but for the last; None
        if some are not kept."""
        found: list[Entry] = []
        block = chain.block_tokens
        for begin in range(start // block * block, end, block):
            wanted = tuple(chain.token_ids[begin : min(begin + block, end)])
            place = chain.keys[begin // block]
            entry = next(
                (one for one in self._blocks_at.get(place, ()) if one.token_ids[: len(wanted)] == wanted), None
            )
            if entry is None:
                return None
            found.append(entry)
        return found

    def state(self, chain: TokenChain, end: int) -> Entry | None:
        """The state after the first `end` tokens of a sequence, if it is kept."""
        return self._states.get(chain.key_of(end))

    # -- finding

    def _match_blocks(self, chain: TokenChain) -> Match:
        most = len(chain) - 1
        path: list[Entry] = []
        for key in chain.keys[1:]:
            entry = self._entries.get(key)
            if entry is None or entry.end > most:
                break
            path.append(entry)
        done = path[-1].end if path else 0
        rest = chain.token_ids[done:most][: chain.block_tokens]
        place = chain.keys[len(path)]
        best, count = None, 0
        for entry in self._blocks_at.get(place, ()):
            same = common(entry.token_ids, rest)
            if same > count:
                best, count = entry, same
        if best is not None:
            path.append(best)
        return Match(done + count, tuple(path))

    def _match_state(self, chain: TokenChain) -> Match:
        most = len(chain) - 1
        for blocks in range(most // chain.block_tokens, -1, -1):
            start = blocks * chain.block_tokens
            found = [
                entry
                for entry in self._states_at.get(chain.keys[blocks], ())
                if entry.end <= most and tuple(chain.token_ids[start : entry.end]) == entry.token_ids
            ]
            if found:
                best = max(found, key=lambda entry: entry.end)
                return Match(best.end, (best,))
        return Match(0)

    def _had_block(self, chain: TokenChain, matched: int, most: int) -> bool:
        """Whether a block had to go with which more than `matched` tokens would have been found, all of it or all that
        is left of the sequence."""
        blocks, count = divmod(matched, chain.block_tokens)
        rest = chain.token_ids[matched - count : most][: chain.block_tokens]
        wanted = ((min(len(one), len(rest)), common(one, rest)) for one in self._evicted.at(chain.keys[blocks]))
        return any(least == same > count for least, same in wanted)

    def _had_state(self, chain: TokenChain, matched: int, most: int) -> bool:
        """Whether a state had to go with which more than `matched` tokens would have been found."""
        for blocks in range(matched // chain.block_tokens, most // chain.block_tokens + 1):
            start = blocks * chain.block_tokens
            for token_ids in self._evicted.at(chain.keys[blocks]):
                end = start + len(token_ids)
                if matched < end <= most and common(chain.token_ids, token_ids, start) == len(token_ids):
                    return True
        return False

    def _is_covered(self, place: bytes, token_ids: Sequence[int]) -> bool:
        return any(entry.token_ids[: len(token_ids)] == token_ids for entry in self._blocks_at.get(place, ()))

    # -- keeping

    def _superseded(self, fresh: Entry) -> list[Entry]:
        """Let go of shorter blocks that say no more than the one that comes."""
        gone = [
            entry
            for entry in self._blocks_at.get(fresh.place, ())
            if len(entry.token_ids) < len(fresh.token_ids)
            and fresh.token_ids[: len(entry.token_ids)] == entry.token_ids
        ]
        for entry in gone:
            fresh.uses = max(fresh.uses, entry.uses)
            self._remove(entry)
        return gone

    def _add(self, entry: Entry) -> None:
        kept, at = (self._states, self._states_at) if entry.is_state else (self._entries, self._blocks_at)
        kept[entry.key] = entry
        at.setdefault(entry.place, []).append(entry)
        self.size += entry.size
        self._evicted.discard(entry.key)
        if entry.parent is not None:
            entry.parent.children += 1
        self._file(entry)

    def _remove(self, entry: Entry) -> None:
        kept, at = (self._states, self._states_at) if entry.is_state else (self._entries, self._blocks_at)
        del kept[entry.key]
        siblings = at[entry.place]
        siblings.remove(entry)
        if not siblings:
            del at[entry.place]
        self.size -= entry.size
        entry.kept = False
        if entry.parent is not None:
            entry.parent.children -= 1
            self._file(entry.parent)

    def _touch(self, entry: Entry, now: float) -> None:
        entry.uses += 1
        self._refresh(entry, now)

    def _refresh(self, entry: Entry, now: float) -> None:
        entry.last_used = now
        self._file(entry)

    # -- letting go

    def _file(self, entry: Entry) -> None:
        self._leaving.file(entry, among=len(self))

    def _make_room(self, limit: float, spared: Entry | None = None) -> list[Entry]:
        gone: list[Entry] = []
        was_spared = False
        while self.size > limit and (entry := self._leaving.take()) is not None:
            if entry is spared:
                was_spared = True
                continue
            self._remove(entry)
            self.counts.evictions += 1
            self._evicted.add(entry)
            gone.append(entry)
        if spared is not None and was_spared:
            self._file(spared)
        return gone
