"""A small model that goes ahead of a large one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx import utils
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_serving.worker.kv_cache import RowLengths, SlotKVCache
from mlx_serving.worker.prompts import Prompt
from mlx_serving.worker.sampling.sampler import BatchSampler
from mlx_serving.worker.speculation.drafter import DraftModel, Wish
from mlx_serving.worker.speculation.verification import behind

BEGIN_TOKENS = 256
"""Of a text that is new to it, it takes in so many tokens a call, and drafts when it knows all."""
CATCH_UP_TOKENS = 64
"""Of one that it knows the beginning of, so many: the rows of others are padded to it."""

_PADDING = 0


def can_draft(model: nn.Module) -> bool:
    """Whether its caches let rows of different lengths go on together, and drop what was wrong."""
    return all(type(cache) is KVCache for cache in make_prompt_cache(model))


def weight_bytes(model: nn.Module) -> int:
    """What its weights take, which is what a pass has to read."""
    weights = cast(Any, utils).tree_flatten(cast(Any, model).parameters())
    return sum(weight.nbytes for _, weight in weights)


@dataclass(slots=True, eq=False)
class _Text:
    """A sequence: while it is new, the `beginning` that was computed; then the caches hold what it is, and `guessed`
    tokens behind that."""

    stream_id: str
    beginning: Prompt | None
    guessed: list[int]


class ModelDrafter:
    """Drafts with the draft model's draws for the same seed and position, and by the same rules, so that it agrees
    where the two models think alike. All its sequences share a pass. `draft.model` must be one that `can_draft`."""

    def __init__(self, draft: DraftModel) -> None:
        self._model: Any = draft.model
        self._new: dict[str, _Text] = {}
        self._rows: list[_Text] = []  # the slots of the caches
        self._lengths = RowLengths()
        self._layers: list[SlotKVCache] = []

    def propose(self, wishes: Sequence[Wish]) -> list[list[int]]:
        texts = {wish.stream_id: [*wish.row.prompt, *wish.row.drawn] for wish in wishes}
        for stream_id, tokens in texts.items():
            self._begin(stream_id, tokens)
        places = {row.stream_id: place for place, row in enumerate(self._rows) if row.stream_id in texts}
        if not places:
            return [[] for _ in wishes]
        behind_hand = [texts.get(row.stream_id, []) for row in self._rows]
        logits = self._catch_up(behind_hand)
        ready = [
            wish
            for wish in wishes
            if wish.stream_id in places and self._lengths.lengths[places[wish.stream_id]] == len(texts[wish.stream_id])
        ]
        drafted = self._go_ahead(ready, [places[wish.stream_id] for wish in ready], logits) if ready else {}
        return [drafted.get(wish.stream_id, [])[: wish.most] for wish in wishes]

    def forget(self, stream_id: str) -> None:
        self._new.pop(stream_id, None)
        place = next((place for place, row in enumerate(self._rows) if row.stream_id == stream_id), None)
        if place is None:
            return
        last = len(self._rows) - 1
        order = [last if index == place else index for index in range(last)]
        self._rows = [self._rows[index] for index in order]
        self._lengths.arrange(order)
        for layer in self._layers:
            layer.arrange(order)
        if not order:
            self._layers = []

    @property
    def nbytes(self) -> int:
        new = sum(cache.nbytes for text in self._new.values() if text.beginning for cache in text.beginning.caches)
        return new + sum(layer.nbytes for layer in self._layers)

    def _begin(self, stream_id: str, tokens: list[int]) -> None:
        """Compute a part of a text that is new; one that is computed but for the last tokens gets a slot."""
        if any(row.stream_id == stream_id for row in self._rows):
            return
        text = self._new.setdefault(stream_id, _Text(stream_id, Prompt(self._model, tokens), []))
        beginning = text.beginning
        assert beginning is not None
        beginning.token_ids = tokens
        beginning.advance(self._model, min(len(tokens) - 1, beginning.done + BEGIN_TOKENS))
        if len(tokens) - beginning.done > CATCH_UP_TOKENS:
            return
        place = len(self._rows)
        if not self._layers:
            self._layers = [SlotKVCache(self._lengths) for _ in beginning.caches]
        for layer, cache in zip(self._layers, beginning.caches, strict=True):
            layer.put(place, cache)
        self._lengths.put(place, beginning.done)
        text.beginning = None
        self._rows.append(self._new.pop(stream_id))

    def _catch_up(self, texts: Sequence[list[int]]) -> mx.array:
        """Have each row hold its text; nothing happens to one without. Returns the logits behind each, [rows, V]."""
        for place, (row, tokens) in enumerate(zip(self._rows, texts, strict=True)):
            if not tokens:
                continue
            known = self._lengths.lengths[place] - len(row.guessed)
            right = 0
            # The last token is computed again if need be, for its logits.
            while (
                right < min(len(row.guessed), len(tokens) - 1 - known) and row.guessed[right] == tokens[known + right]
            ):
                right += 1
            self._lengths.put(place, known + right)
            row.guessed = []
        missing = [
            tokens[length : length + CATCH_UP_TOKENS]
            for length, tokens in zip(self._lengths.lengths, texts, strict=True)
        ]
        width = max(map(len, missing))
        logits = self._forward([[*tokens, *[_PADDING] * (width - len(tokens))] for tokens in missing])
        counts = [len(tokens) for tokens in missing]
        self._lengths.advance(counts)
        return logits[mx.arange(len(counts)), mx.array([max(count - 1, 0) for count in counts])]

    def _go_ahead(self, wishes: Sequence[Wish], places: Sequence[int], logits: mx.array) -> dict[str, list[int]]:
        """Draw as many tokens for these rows as the one that wants most wants."""
        index = mx.array(list(places))
        sampler = BatchSampler([behind(wish.row, []) for wish in wishes], logits.shape[-1])
        inputs = mx.array([(wish.row.drawn or wish.row.prompt)[-1] for wish in wishes], dtype=mx.uint32)
        grown = [int(place in places) for place in range(len(self._rows))]
        drawn: list[mx.array] = []
        most = max(wish.most for wish in wishes)
        chosen = logits[index]
        while True:
            inputs = sampler(chosen, inputs).tokens.astype(mx.uint32)
            drawn.append(inputs)
            if len(drawn) == most:
                break
            fed = mx.full((len(self._rows),), _PADDING, dtype=mx.uint32)
            fed[index] = inputs
            chosen = self._forward(fed[:, None])[:, -1][index]
            mx.async_eval(chosen)  # pyright: ignore[reportUnknownMemberType]  untyped in MLX's stub
            self._lengths.advance(grown)
        tokens = cast("list[list[int]]", mx.stack(drawn, axis=1).tolist())
        for place, draft in zip(places, tokens, strict=True):
            self._rows[place].guessed = draft[:-1]
        return {wish.stream_id: draft for wish, draft in zip(wishes, tokens, strict=True)}

    def _forward(self, tokens: mx.array | list[list[int]]) -> mx.array:
        """[rows, width] -> [rows, width, vocabulary]."""
        fed = mx.array(tokens, dtype=mx.uint32) if isinstance(tokens, list) else tokens
        self._lengths.widen(fed.shape[1])
        return cast(mx.array, self._model(fed, cache=[layer.cache for layer in self._layers]))
