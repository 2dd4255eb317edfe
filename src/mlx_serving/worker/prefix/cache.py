"""The beginnings of sequences that are kept in memory, to be used by others: the shell around `core.prefix.index`.

What a sequence has computed is offered when its prompt is complete, where somebody waits for it, and when it leaves.
Only what is not kept yet is copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.prefix.entries import Entry, Insertion, Match
from mlx_serving.core.prefix.index import PrefixCachePolicy, PrefixIndex
from mlx_serving.core.prefix.token_chain import TokenChain, root_key
from mlx_serving.core.runtime_telemetry import PrefixTelemetry
from mlx_serving.worker.prefix import kv as prefix_kv
from mlx_serving.worker.prefix.kv import CacheState, Kept, KvBlock

MIN_TOKENS = 16
"""Less is not worth an entry: computing it takes one small pass."""


class PrefixStore(Protocol):
    """Whoever keeps beginnings elsewhere as well. Called on the thread that owns MLX; must not wait for anything."""

    @property
    def running_tokens(self) -> int | None:
        """It wants to hear of a running sequence each time that this has so many tokens more; None not before it
        ends."""
        ...

    def keep(self, chain: TokenChain, end: int, *, exact: bool, whole: bool) -> None:
        """The first `end` tokens of a sequence are kept now. `exact`: as a whole state; `whole`: others are to begin
        with all of them."""
        ...


class NoStore:
    running_tokens = None

    def keep(self, chain: TokenChain, end: int, *, exact: bool, whole: bool) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Beginning:
    """Caches that hold the first `tokens` tokens of a sequence. They are its own."""

    caches: list[Any]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Claim:
    """What was found for a sequence. It holds the arrays, whatever becomes of their entries."""

    match: Match
    kept: tuple[Kept, ...]


class PrefixCache:
    """Belongs to the thread that owns MLX. It answers the scheduler (`core.prefix.prefixes`).

    `spare` says how many bytes the running sequences leave; what is kept gives way to them.
    """

    def __init__(self, policy: PrefixCachePolicy) -> None:
        self._policy = policy
        self.store: PrefixStore = NoStore()
        self._index = PrefixIndex()
        self._kept: dict[Entry, Kept] = {}
        self._chains: dict[str, TokenChain] = {}
        self._claims: dict[str, _Claim] = {}
        self._fingerprints: dict[str, str] = {}
        self._forms: dict[str, KvForm | None] = {}
        self._exact: set[str] = set()
        self._spare: Callable[[], float] = lambda: float("inf")
        self._limit: float = float("inf") if policy.memory_bytes is None else policy.memory_bytes
        self._misses: dict[str, int] = {}

    @property
    def nbytes(self) -> int:
        """What is kept takes."""
        return self._index.size

    @property
    def running_tokens(self) -> int | None:
        """Each time that a running sequence has so many tokens more it is to be offered; None not before it ends."""
        return self.store.running_tokens

    def give_way(self, spare: Callable[[], float]) -> None:
        """`spare` tells what of the memory for KV caches nobody has reserved, in bytes."""
        self._spare = spare

    def allow(self, kv_caches: int) -> None:
        """`kv_caches` bytes are there for sequences and what is kept of them."""
        self._limit = kv_caches // 2 if self._policy.memory_bytes is None else self._policy.memory_bytes
        self.fit()

    def fit(self) -> None:
        """Let go of what the running sequences need the memory of."""
        if self._index.size > self._most:
            self._forget(self._index.evict(self._most))

    @property
    def _most(self) -> float:
        return max(0.0, min(self._limit, self._spare()))

    # -- models and sequences

    def add_model(self, model_id: str, fingerprint: str, *, exact: bool, form: KvForm | None = None) -> None:
        """`exact`: its caches cannot be cut, so that their whole state is kept. `form` is what they are in."""
        self._fingerprints[model_id] = fingerprint
        self._forms[model_id] = form
        if exact:
            self._exact.add(model_id)

    def remove_model(self, model_id: str) -> None:
        """Forget it, with all that is kept of its sequences."""
        self.clear(model_id)
        self._fingerprints.pop(model_id, None)
        self._forms.pop(model_id, None)
        self._exact.discard(model_id)

    def clear(self, model_id: str) -> None:
        """Forget all that is kept of its sequences."""
        self._forget(self._index.drop(model_id))

    def open(self, id: str, model_id: str, token_ids: Sequence[int], salt: str, caller: str) -> None:  # noqa: A002
        """A sequence has come, of which these are the first tokens."""
        chain = self.chain_of(model_id, token_ids, salt, caller)
        if chain is not None:
            self._chains[id] = chain

    def chain_of(self, model_id: str, token_ids: Sequence[int], salt: str, caller: str) -> TokenChain | None:
        """The names of a sequence's beginnings; None if none are kept."""
        if not self._policy.enabled:
            return None
        if self._policy.per_caller:
            salt = f"{len(caller)} {caller} {salt}"  # with the length, no two pairs look the same
        root = root_key(self._fingerprints[model_id], salt)
        return TokenChain(model_id, root, token_ids, self._policy.block_tokens, salt)

    def grow(self, id: str, token_ids: Sequence[int]) -> None:  # noqa: A002
        """What is to be computed of it are all these tokens now."""
        chain = self._chains.get(id)
        if chain is not None:
            chain.grow(token_ids)

    def close(self, id: str) -> None:  # noqa: A002
        """It has ended."""
        self._chains.pop(id, None)
        self._claims.pop(id, None)

    # -- core.prefixes.Prefixes

    def covered(self, id: str) -> int:  # noqa: A002
        chain = self._chains.get(id)
        return 0 if chain is None else self._match(chain).tokens

    def claim(self, id: str) -> int:  # noqa: A002
        chain = self._chains.get(id)
        if chain is None:
            return 0
        match = self._match(chain)
        self._index.use(match, len(chain), time.monotonic())
        reason = self._index.reason(chain, match.tokens, states=chain.owner in self._exact)
        if reason is not None:
            self._misses[reason] = self._misses.get(reason, 0) + 1
        self._claims[id] = _Claim(match, tuple(self._kept[entry] for entry in match.entries))
        return match.tokens

    def shared(self, id: str, other: str) -> int:  # noqa: A002
        chain, others = self._chains.get(id), self._chains.get(other)
        if chain is None or others is None:
            return 0
        count = min(chain.shared(others), len(chain) - 1, len(others) - 1)
        return count if count >= MIN_TOKENS else 0

    # -- caches

    def fetch(self, id: str, room: int) -> Beginning | None:  # noqa: A002
        """The caches that a sequence has claimed, with room for `room` tokens. None if it found nothing."""
        claim = self._claims.pop(id, None)
        if claim is None or not claim.match.tokens:
            return None
        first = claim.kept[0]
        if isinstance(first, CacheState):
            return Beginning(first.begin(), claim.match.tokens)
        blocks = [kept for kept in claim.kept if isinstance(kept, KvBlock)]
        form = self._forms[self._chains[id].owner]
        return Beginning(prefix_kv.join(blocks, claim.match.tokens, room, form), claim.match.tokens)

    def offer(self, stream_id: str, token_ids: Sequence[int], caches: Sequence[Any], *, whole: bool) -> None:
        """The caches of a sequence hold exactly these tokens: keep what is not kept yet, as far as there is room.
        `whole`: others are to begin with all of them."""
        chain = self._chains.get(stream_id)
        if chain is None or len(token_ids) < MIN_TOKENS:
            return
        chain.grow(token_ids)
        exact = chain.owner in self._exact
        if exact and not whole:
            return
        end, now = len(token_ids), time.monotonic()
        if exact:
            state = prefix_kv.state_of(caches)
            insertion = self._index.insert_state(chain, end, size=state.nbytes, limit=self._most, now=now)
            added: dict[Entry, Kept] = dict.fromkeys(insertion.added, state)
        else:
            size = prefix_kv.token_bytes(caches)
            insertion = self._index.insert_blocks(chain, end, tail=whole, token_bytes=size, limit=self._most, now=now)
            added = {
                entry: prefix_kv.cut(caches, entry.end - len(entry.token_ids), entry.end) for entry in insertion.added
            }
        self._keep(added, insertion)
        if added:
            self.store.keep(chain, max(entry.end for entry in added), exact=exact, whole=whole)

    def _keep(self, added: Mapping[Entry, Kept], insertion: Insertion) -> None:
        self._forget(insertion.gone)
        if added:
            prefix_kv.compute(list(added.values()))
            self._kept |= {entry: kept for entry, kept in added.items() if entry.kept}

    # -- for the store

    def is_exact(self, model_id: str) -> bool:
        """Whether whole states are kept of its caches, because they cannot be cut."""
        return model_id in self._exact

    def tokens_of(self, chain: TokenChain) -> int:
        """How many first tokens of a sequence are kept; not all."""
        return self._match(chain).tokens

    def blocks(self, chain: TokenChain, start: int, end: int) -> list[KvBlock] | None:
        """What is kept of these tokens of a sequence, block by block; None if it is not all kept."""
        entries = self._index.blocks(chain, start, end)
        if not entries:
            return None
        found: list[KvBlock] = []
        for entry in entries:
            kept, begin = self._kept[entry], entry.end - len(entry.token_ids)
            assert isinstance(kept, KvBlock), "only models whose caches are exact have states"
            found.append(prefix_kv.within(kept, max(start, begin) - begin, min(end, entry.end) - begin))
        return found

    def state(self, chain: TokenChain, end: int) -> CacheState | None:
        """The state that is kept after these tokens of a sequence."""
        entry = self._index.state(chain, end)
        kept = None if entry is None else self._kept[entry]
        return kept if isinstance(kept, CacheState) else None

    @property
    def room(self) -> float:
        """Bytes that could be kept without letting go of any."""
        return max(0.0, self._most - self._index.size)

    def restore_blocks(
        self, chain: TokenChain, start: int, end: int, blocks: Sequence[KvBlock], age_s: float = 0.0
    ) -> bool:
        """Keep what `blocks` hold, one behind the other, of the tokens [start, end) of a sequence, which was last used
        `age_s` seconds ago. They are the cache's from now on, where they are its blocks as they come. False if what
        comes before is not kept any more, or there is no room."""
        begin = start - start % chain.block_tokens
        if begin < start:
            before = self.blocks(chain, begin, start)
            if before is None:
                return False
            blocks = [*before, *blocks]
        token_bytes = sum(block.nbytes for block in blocks) // sum(block.tokens for block in blocks)
        used = time.monotonic() - age_s
        insertion = self._index.insert_blocks(
            chain, end, tail=True, token_bytes=token_bytes, limit=self._most, now=used, begin=begin
        )
        cutter = prefix_kv.Cutter(blocks, begin)
        added = {entry: cutter.cut(entry.end - len(entry.token_ids), entry.end) for entry in insertion.added}
        self._keep(added, insertion)
        return self._index.blocks(chain, begin, end) is not None

    def restore_state(self, chain: TokenChain, end: int, caches: list[Any], age_s: float = 0.0) -> None:
        """Keep caches that hold the first `end` tokens of a sequence, which was last used `age_s` seconds ago."""
        state, used = CacheState(caches), time.monotonic() - age_s
        insertion = self._index.insert_state(chain, end, size=state.nbytes, limit=self._most, now=used)
        self._keep(dict.fromkeys(insertion.added, state), insertion)

    def _match(self, chain: TokenChain) -> Match:
        match = self._index.match(chain, states=chain.owner in self._exact)
        return match if match.tokens >= MIN_TOKENS else Match(0)

    def _forget(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._kept.pop(entry, None)

    def telemetry(self) -> PrefixTelemetry:
        counts = self._index.counts
        return PrefixTelemetry(
            bytes=self._index.size,
            limit_bytes=None if self._limit == float("inf") else int(self._limit),
            entries=len(self._index),
            hits=counts.hits,
            misses=counts.misses,
            hit_tokens=counts.hit_tokens,
            missed_tokens=counts.missed_tokens,
            evictions=counts.evictions,
            miss_reasons=dict(self._misses),
        )
