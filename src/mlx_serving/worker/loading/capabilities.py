"""What an architecture can do, found by trying it: each answer is what came out beside what comes out alone.

Cache classes promise more than models keep: a recurrent layer may take padding into its state, a cache that says it
merges may not. So a few tokens are computed both ways, with the same code that serves requests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import (
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)

from mlx_serving.core.kv_form import GROUP_SIZES, KvForm
from mlx_serving.errors import InvalidRequest
from mlx_serving.wire.methods import ModelCapabilities
from mlx_serving.worker.decode_layer import decode_layer
from mlx_serving.worker.kv_cache import RowLengths
from mlx_serving.worker.packed_kv import is_packable, make_caches
from mlx_serving.worker.prompts import Prompt, begin_together

# Two lengths, and no text: token ids that every vocabulary has. The logits after the last of them are compared.
_SHORT = (1, 2)
_LONG = (3, 4, 5, 6, 7, 8, 9, 1, 2)
_CUT = 4

# Of the spread of the logits. Rounding in 16 bits stays below a hundredth; a state that took padding in is far above.
_TOLERANCE = 0.05

_BITS = 8  # what fewer bits lose is too near to what a wrong cache loses


def probe(model: nn.Module) -> ModelCapabilities:
    """Runs the model on a few tokens, about eight times if it can everything."""
    trials = probing(model)
    while True:
        try:
            next(trials)
        except StopIteration as end:
            return cast(ModelCapabilities, end.value)


def probing(model: nn.Module) -> Generator[None, None, ModelCapabilities]:
    """The same in slices: after each trial others may have their turn."""
    trials = _Trials(model)
    yield
    together = _holds(trials.together)
    yield
    trim = not trials.is_bounded and _holds(trials.trimmed)
    yield
    batch = together or _holds(trials.decoded_together)
    batch_prefill = together or _holds(trials.begun_together)
    yield
    quantise_cache = _holds(trials.quantised)
    yield
    return ModelCapabilities(batch, batch_prefill, trim, quantise_cache, draft=trim)


def kv_bytes_and_logits(model: nn.Module) -> tuple[int, int]:
    """What one token takes in the caches, in bytes, and how many logits it gives. Both are measured.

    The caches are asked what they allocated, and for how many tokens. Layers whose cache does not grow (recurrent
    ones) count nothing. Those that stop growing, at a window or a chunk, count as if they did not: what a sequence
    needs is then overestimated, which is safe.
    """
    caches = make_prompt_cache(model)
    logits = _begin(model, caches)
    growing = [one for one in _flat(caches) if isinstance(one, KVCache | RotatingKVCache | ChunkedKVCache)]
    return sum(cache.nbytes // cache.keys.shape[2] for cache in growing), logits.shape[-1]


def packed_kv_bytes(model: nn.Module, form: KvForm, capabilities: ModelCapabilities, model_id: str) -> int:
    """What one token takes in caches in that form, in bytes.

    Raises `InvalidRequest` for a model whose caches cannot be had in it.
    """
    caches = make_prompt_cache(model)
    if not is_packable(caches):
        kinds = sorted({type(cache).__name__ for cache in caches} - {KVCache.__name__})
        raise _not_packable(form, model_id, f"it has layers with caches of other kinds ({', '.join(kinds)})")
    _begin(model, caches)
    form.require(_head_dims(caches), model_id)
    if not capabilities.quantise_cache:
        raise _not_packable(form, model_id, "its attention does not compute the same from packed keys and values")
    packed = make_caches(model, form)
    _begin(model, packed)
    return sum(cache.nbytes // cache.keys[0].shape[2] for cache in packed)


def _begin(model: nn.Module, caches: Sequence[Any]) -> mx.array:
    return cast(mx.array, cast(Any, model)(mx.array([[0]], dtype=mx.uint32), cache=list(caches)))


def _head_dims(caches: Sequence[Any]) -> set[int]:
    return {array.shape[3] for cache in caches for array in (cache.keys, cache.values)}


def _not_packable(form: KvForm, model_id: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The KV caches of {model_id} cannot be packed: {reason}; leave kv_bits out", field="kv_bits", given=form.bits
    )


def _flat(caches: Iterable[Any]) -> Iterator[Any]:
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from _flat(cache.caches)
        else:
            yield cache


def _holds(trial: Callable[[], Iterator[tuple[mx.array, mx.array]]]) -> bool:
    """Whether a trial makes pairs of logits, and all are alike."""
    try:
        pairs = list(trial())
        return bool(pairs) and all(_alike(tried, alone) for tried, alone in pairs)
    except Exception:  # noqa: BLE001  whatever an architecture raises here, it says that it cannot
        return False


def _alike(tried: mx.array, alone: mx.array) -> bool:
    error = mx.sqrt(mx.mean(mx.square(tried - alone)))
    return bool((error <= _TOLERANCE * mx.std(alone)).item())


class _Trials:
    """Each yields pairs of logits: as the trial has them, and as they are alone."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._alone: dict[tuple[int, ...], mx.array] = {}
        self._long = self._begun(_LONG)

    @property
    def is_bounded(self) -> bool:
        """A window of the last tokens can be cut while it is not full, a chunk to where it begins: neither to any
        earlier length, however it went with a few tokens."""
        return any(isinstance(cache, RotatingKVCache | ChunkedKVCache) for cache in _flat(self._long.caches))

    def together(self) -> Iterator[tuple[mx.array, mx.array]]:
        """Two sequences of different lengths that begin in one pass and go on in one step."""
        return self._decoded(self._begun_in_one_pass())

    def decoded_together(self) -> Iterator[tuple[mx.array, mx.array]]:
        """Two that begin alone and go on in one step."""
        return self._decoded([self._begun(_SHORT), self._long])

    def begun_together(self) -> Iterator[tuple[mx.array, mx.array]]:
        """Two that begin in one pass and go on alone."""
        for prompt in self._begun_in_one_pass():
            yield self._logits_after(prompt.token_ids[-1], prompt.caches), self._logits_alone(tuple(prompt.token_ids))

    def trimmed(self) -> Iterator[tuple[mx.array, mx.array]]:
        """A sequence whose last tokens are taken back and that goes on differently."""
        caches = self._caches_of_long()
        if can_trim_prompt_cache(caches):
            trim_prompt_cache(caches, _CUT)
            kept = _LONG[: len(_LONG) - 1 - _CUT]
            yield self._logits_after(_SHORT[-1], caches), self._logits_alone((*kept, _SHORT[-1]))

    def quantised(self) -> Iterator[tuple[mx.array, mx.array]]:
        """A sequence whose caches are in 8 bits."""
        caches = self._caches_of_long()
        if not is_packable(caches):
            return
        group_size = next(size for size in GROUP_SIZES if all(width % size == 0 for width in _head_dims(caches)))
        caches = make_caches(self._model, KvForm(_BITS, group_size))
        self._logits([_LONG[:-1]], caches)
        yield self._logits_after(_LONG[-1], caches), self._logits_alone(_LONG)

    def _begun(self, tokens: Sequence[int]) -> Prompt:
        """Computed but for its last token."""
        prompt = Prompt(self._model, tokens)
        prompt.advance(self._model, len(tokens) - 1)
        return prompt

    def _begun_in_one_pass(self) -> list[Prompt]:
        prompts = [Prompt(self._model, tokens) for tokens in (_SHORT, _LONG)]
        begin_together(self._model, [(prompt, len(prompt.token_ids) - 1) for prompt in prompts])
        return prompts

    def _decoded(self, prompts: Sequence[Prompt]) -> Iterator[tuple[mx.array, mx.array]]:
        """One step of a batch that all have joined."""
        lengths = RowLengths()
        layers = [decode_layer(cache, lengths) for cache in prompts[0].caches]
        for row, prompt in enumerate(prompts):
            for layer, cache in zip(layers, prompt.caches, strict=True):
                layer.put(row, cache)
            lengths.put(row, prompt.done)
        logits = self._logits([prompt.token_ids[-1:] for prompt in prompts], [layer.cache for layer in layers])
        for of_row, prompt in zip(logits, prompts, strict=True):
            yield of_row, self._logits_alone(tuple(prompt.token_ids))

    def _caches_of_long(self) -> list[Any]:
        return copy.deepcopy(self._long.caches)

    def _logits_alone(self, tokens: tuple[int, ...]) -> mx.array:
        if tokens not in self._alone:
            self._alone[tokens] = self._logits([tokens], make_prompt_cache(self._model))[0]
        return self._alone[tokens]

    def _logits_after(self, token: int, caches: Sequence[Any]) -> mx.array:
        return self._logits([[token]], caches)[0]

    def _logits(self, tokens: Sequence[Sequence[int]], caches: Sequence[Any]) -> mx.array:
        """[rows, vocabulary] float32, after the last token of each row."""
        logits = self._model(mx.array([list(row) for row in tokens], dtype=mx.uint32), cache=list(caches))
        return logits[:, -1].astype(mx.float32)
