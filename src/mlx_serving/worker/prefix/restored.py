"""From what records hold to blocks and states in memory, checked against the model that is to use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_serving.catalog.prefix_records import Content, UnusableRecord
from mlx_serving.core.prefix.disk import Found
from mlx_serving.core.prefix.record import DiskRecord
from mlx_serving.core.prefix.token_chain import TokenChain
from mlx_serving.worker.prefix.arrays import caches_of, from_content
from mlx_serving.worker.prefix.cache import PrefixCache
from mlx_serving.worker.prefix.kv import KvBlock


@dataclass(frozen=True, slots=True)
class KnownModel:
    """`fingerprint` tells the files of different models apart. `classes` are those of its caches, layer by layer, of
    which a token takes `token_bytes` in all; of what can be cut there are `pairs` of keys and values."""

    fingerprint: str
    token_bytes: int
    classes: list[type[Any]]
    pairs: int


class Restored:
    """What was read for one sequence, last used `age_s` seconds ago, on its way into memory."""

    def __init__(self, memory: PrefixCache, chain: TokenChain, model: KnownModel, age_s: float = 0.0) -> None:
        self._memory = memory
        self._age_s = age_s
        self._chain = chain
        self.model = model
        self._blocks: list[KvBlock] = []  # that were taken and are not kept yet
        self._start = self._end = 0  # the tokens that they are of

    @property
    def owner(self) -> str:
        """The id of the model."""
        return self._chain.owner

    def take(self, found: Found, content: Content) -> None:
        """Take what a record holds. Raises `UnusableRecord`."""
        tree = from_content(content)
        if content.kind == "state":
            caches = caches_of(tree)
            if [type(cache) for cache in caches] != self.model.classes:
                raise UnusableRecord("its caches are of other kinds than the model's")
            self._memory.restore_state(self._chain, found.record.end, caches, self._age_s)
            return
        blocks = self._checked(tree, found.record)
        if not self._blocks:
            self._start = found.record.start
        self._blocks += blocks
        self._end = found.record.start + found.count

    def keep(self) -> bool:
        """Put what was taken into memory. False if what may follow is of no use."""
        blocks, self._blocks = self._blocks, []
        if not blocks:
            return True
        return self._memory.restore_blocks(self._chain, self._start, self._end, blocks, self._age_s)

    def _checked(self, tree: Any, record: DiskRecord) -> list[KvBlock]:
        """Keys and values of all layers, block by block, as the model would have made them."""
        try:
            blocks = [KvBlock([(keys, values) for keys, values in layers]) for layers in tree]
            fits = all(
                len(block.layers) == self.model.pairs
                and block.nbytes == self.model.token_bytes * block.tokens
                and all((array.ndim, array.shape[0]) == (4, 1) for layer in block.layers for array in layer)
                and all(array.shape[2] == block.tokens for layer in block.layers for array in layer)
                for block in blocks
            )
            fits = fits and sum(block.tokens for block in blocks) == record.count
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise UnusableRecord(f"it holds no keys and values: {error}") from error
        if not fits:
            raise UnusableRecord("its keys and values are not of the model's shape")
        return blocks
