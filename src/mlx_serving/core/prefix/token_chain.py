"""Names for beginnings of token sequences: equal names are equal beginnings, of the same model and the same tenant.

    root ──64 tokens──▶ key ──64 tokens──▶ key ──the rest──▶ key

The key of a block is a digest of the key before it, its tokens, and what else its KV depends on: an image that stands
behind some of its token ids, say. So a key names everything from the beginning, and can be kept in a file.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Sequence

KEY_BYTES = 32


def root_key(fingerprint: str, salt: str = "") -> bytes:
    """Where the sequences of a model begin. `fingerprint` is what its KV depends on besides tokens; those who name
    different salts share nothing."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"prefix-root")
    for part in (fingerprint.encode(), salt.encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def next_key(parent: bytes, token_ids: Sequence[int], extra: bytes = b"") -> bytes:
    """The key of `token_ids` behind what `parent` names. `extra` is what their KV depends on besides."""
    tokens = array("q", token_ids).tobytes()
    digest = hashlib.blake2b(parent, digest_size=KEY_BYTES, person=b"prefix-block")
    digest.update(len(tokens).to_bytes(8, "little") + tokens + extra)
    return digest.digest()


class TokenChain:
    """The tokens of one sequence, which may grow, and the keys of their blocks. `owner` names the model, `salt` is what
    the root was made with."""

    def __init__(self, owner: str, root: bytes, token_ids: Sequence[int], block_tokens: int, salt: str = "") -> None:
        self.owner = owner
        self.salt = salt
        self.block_tokens = block_tokens
        self.token_ids = list[int]()
        self.keys = [root]
        """`keys[n]` names the first n blocks."""
        self.grow(token_ids)

    def __len__(self) -> int:
        return len(self.token_ids)

    def grow(self, token_ids: Sequence[int]) -> None:
        """The sequence is at least `token_ids` now, which begins with what was known of it or ends before."""
        self.token_ids += token_ids[len(self.token_ids) :]
        block = self.block_tokens
        while len(self.keys) * block <= len(self.token_ids):
            end = len(self.keys) * block
            self.keys.append(next_key(self.keys[-1], self.token_ids[end - block : end]))

    def key_of(self, count: int) -> bytes:
        """The name of the first `count` tokens."""
        blocks, rest = divmod(count, self.block_tokens)
        return next_key(self.keys[blocks], self.token_ids[count - rest : count]) if rest else self.keys[blocks]

    def shared(self, other: TokenChain) -> int:
        """How many first tokens both have. Chains of other models or tenants share none."""
        if self.keys[0] != other.keys[0]:
            return 0
        blocks = min(len(self.keys), len(other.keys))
        # Keys differ from some block on for good.
        same = bisect_left(range(blocks), True, key=lambda index: self.keys[index] != other.keys[index]) - 1
        start = same * self.block_tokens
        return start + common(self.token_ids, other.token_ids[start : start + self.block_tokens], start)


def common(token_ids: Sequence[int], others: Sequence[int], start: int = 0) -> int:
    """How many of `others` stand in `token_ids` from `start` on."""
    count = 0
    for own, other in zip(token_ids[start : start + len(others)], others, strict=False):
        if own != other:
            break
        count += 1
    return count
