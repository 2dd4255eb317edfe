"""Beginnings of sequences on disk, for those that memory does not keep any more: after a restart, say.

    what memory keeps ──keep──▶ promised ──pump, a little a step──▶ bytes ──thread──▶ a file
    a prompt that comes ──read_ahead──▶ its records, if that is cheaper than computing ──▶ memory ──▶ the scheduler
    a model that comes ──▶ the records that were used last, as far as there is room ──▶ memory

This is the part that belongs to the thread that owns MLX; `files` is the other one.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_serving.catalog.identity import IdentityIndex
from mlx_serving.catalog.prefix_records import IDENTITIES, Content, version_folder
from mlx_serving.core.prefix.disk import RECORD_TOKENS, KnownSequence
from mlx_serving.core.prefix.record import DiskRecord, Key, RecordKind, pack, root_key, unpack
from mlx_serving.core.prefix.token_chain import TokenChain
from mlx_serving.core.prefix.traffic import patience_s
from mlx_serving.core.runtime_telemetry import PrefixDiskTelemetry
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.packed_kv import unpacked
from mlx_serving.worker.prefix.arrays import to_content, tree_of
from mlx_serving.worker.prefix.cache import MIN_TOKENS, PrefixCache
from mlx_serving.worker.prefix.files import Part, PrefixFiles, Reading
from mlx_serving.worker.prefix.restored import KnownModel, Restored
from mlx_serving.worker.vision.architecture import VisionText

_PUMP_BYTES = 4 << 20
"""What is made of what waits to be written in one step, a record more or less."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A prompt that waits for the disk. `then` is called once, when it need not wait any more."""

    chain: TokenChain
    root: Key
    then: Callable[[], None]
    reading: Reading | None = None
    timer: threading.Timer | None = None
    is_over: bool = False


class PrefixDisk:
    """What a sequence computes is wanted as it goes on: a worker that dies loses little more than a record of it.
    `prefill_s(model_id, start, count)` says how long it takes to compute so many tokens of a prompt behind `start`
    others, in seconds, 0 while that is not known."""

    running_tokens = RECORD_TOKENS

    def __init__(
        self,
        files: PrefixFiles,
        folder: Path,
        memory: PrefixCache,
        prefill_s: Callable[[str, int, int], float],
        deliver: Callable[[Callable[[], None]], None],
        preload_bytes: int = 0,
    ) -> None:
        self._files = files
        self._preload_bytes = preload_bytes
        self._identities = IdentityIndex(version_folder(folder) / IDENTITIES)
        self._memory = memory
        self._prefill_s = prefill_s
        self._deliver = deliver
        self._present: dict[str, LoadedModel] = {}
        self._models: dict[str, KnownModel] = {}  # those of them that are known by what they hold
        # By root, one after the other: the next one may find in memory what was read for the last one.
        self._turns: dict[Key, deque[_Waiting]] = {}
        memory.store = self

    def add_model(self, model: LoadedModel) -> None:
        """Find what is on disk of it. Its files are read once, in the background, to know them by what they hold."""
        self._present[model.model_id] = model
        caches = model.make_caches()
        classes: list[type[Any]] = [type(cache) for cache in caches]
        pairs = len(unpacked(caches))
        directory = Path(model.facts.cached_path)
        weights = sorted(directory.glob("*.safetensors"))
        facts = f"{model.facts.config_digest} {model.facts.dtype} {model.kv_bytes_per_token}"
        if model.options.kv is not None:
            facts += f" {model.options.kv}"
        libraries = ["mlx", "mlx-lm"]
        if isinstance(model.model, VisionText):
            libraries.append("mlx-vlm")

        def identified(digests: Sequence[str]) -> None:
            if self._present.get(model.model_id) is not model:
                return  # its files were read for so long that it is gone, and another one may have its name
            fingerprint = _fingerprint(facts, libraries, digests)
            self._models[model.model_id] = KnownModel(fingerprint, model.kv_bytes_per_token, classes, pairs)
            self._files.add_model(fingerprint)
            # Behind the look at what there is.
            self._files.do(lambda: self._deliver(lambda: self.preload(model.model_id, self._preload_bytes)))

        def identify() -> None:
            digests = [self._identities.digest(file.resolve()) for file in weights]
            self._deliver(lambda: identified(digests))

        known = [self._identities.known(file.resolve()) for file in weights]
        if None in known:
            self._files.do(identify)
        else:
            identified([digest for digest in known if digest is not None])

    def remove_model(self, model_id: str) -> None:
        self._present.pop(model_id, None)
        self._models.pop(model_id, None)

    # -- to disk

    def keep(self, chain: TokenChain, end: int, *, exact: bool, whole: bool) -> None:
        """See `prefix_cache.PrefixStore`."""
        model = self._models.get(chain.owner)
        if model is None:
            return
        kind: RecordKind = "state" if exact else "blocks"
        tokens = pack(chain.token_ids[:end])
        state = self._memory.state(chain, end) if exact else None
        token_bytes = model.token_bytes if state is None else state.nbytes / end

        def content(record: DiskRecord) -> Content | None:
            return self._content(chain, record, kind)

        root = _root(model, chain, kind)
        # Of whole blocks, so that they are written and read as memory has them.
        most = RECORD_TOKENS - RECORD_TOKENS % chain.block_tokens
        self._files.keep(model.fingerprint, root, tokens, kind, token_bytes, content, most=most, tail=whole)

    def _content(self, chain: TokenChain, record: DiskRecord, kind: RecordKind) -> Content | None:
        if kind == "blocks":
            blocks = self._memory.blocks(chain, record.start, record.end)
            return None if blocks is None else to_content(kind, [block.layers for block in blocks])
        state = self._memory.state(chain, record.end)
        tree = None if state is None else tree_of(state.caches)
        return None if tree is None else to_content(kind, tree)

    @property
    def is_due(self) -> bool:
        """Whether `work` has something to do."""
        return self._files.wants_pump

    def work(self) -> None:
        """A step's part of what there is to do."""
        self._files.pump(_PUMP_BYTES)

    def flush(self, patience_s: float) -> None:
        """Write what waits, if it can be done in so many seconds."""
        self._files.flush(patience_s)

    def close(self) -> None:
        """Read and write no more."""
        self._files.close()

    # -- from disk

    def read_ahead(
        self, model_id: str, token_ids: Sequence[int], salt: str, caller: str, then: Callable[[], None]
    ) -> bool:
        """Whether a prompt waits for what is on disk of it. Then `then` is called when it is in memory, or when
        computing it would have taken no longer."""
        model = self._models.get(model_id)
        chain = None if model is None else self._memory.chain_of(model_id, token_ids, salt, caller)
        if model is None or chain is None:
            return False
        root = _root(model, chain, self._kind(model_id))
        wait_s = self._worth_s(model, chain, root)
        if wait_s is None:
            return False
        waiting = _Waiting(chain, root, then)
        waiting.timer = threading.Timer(wait_s, self._deliver, [lambda: self._end(waiting)])
        waiting.timer.daemon = True
        waiting.timer.start()
        turns = self._turns.setdefault(root, deque())
        turns.append(waiting)
        if len(turns) == 1:
            self._read(model, waiting)
        return True

    def _kind(self, model_id: str) -> RecordKind:
        return "state" if self._memory.is_exact(model_id) else "blocks"

    def _worth_s(self, model: KnownModel, chain: TokenChain, root: Key) -> float | None:
        """How long to wait for what is on disk; None if that is not worth it."""
        path = self._files.find(model.fingerprint, root, _useful(chain), self._kind(chain.owner))
        if path is None:  # it is being found out
            return patience_s(0, 0)
        have = self._memory.tokens_of(chain)
        wanted = [found for found in path if found.record.start + found.count > have]
        gained = wanted[-1].record.start + wanted[-1].count - have if wanted else 0
        if gained < MIN_TOKENS:
            return None
        reading_s = self._files.reading_s(sum(found.record.size for found in wanted))
        return patience_s(reading_s, self._prefill_s(chain.owner, have, gained))

    def _read(self, model: KnownModel, waiting: _Waiting) -> None:
        chain = waiting.chain
        kind = self._kind(chain.owner)
        restored = Restored(self._memory, chain, model)
        reading = Reading(
            model.fingerprint,
            waiting.root,
            _useful(chain),
            kind,
            self._memory.tokens_of(chain),
            on_part=lambda part: self._use(waiting, restored, part),
            on_end=lambda: self._end(waiting),
        )
        waiting.reading = reading
        self._files.read(reading)

    def preload(self, model_id: str, most: int) -> None:
        """Read what is likely to be asked for, up to `most` bytes: of those who name no salt, what was used last. Half
        of the room in memory is left to those who come meanwhile."""
        model = self._models.get(model_id)
        chain = None if model is None else self._memory.chain_of(model_id, (), "", "")
        if model is not None and chain is not None:
            root = _root(model, chain, self._kind(model_id))
            likely = self._files.latest(root, min(most, self._memory.room / 2))
            self._preload_next(model_id, model, root, deque(likely))

    def _preload_next(self, model_id: str, model: KnownModel, root: Key, sequences: deque[KnownSequence]) -> None:
        if self._models.get(model_id) is not model or not sequences:  # another one may have its name meanwhile
            return
        sequence = sequences.popleft()
        chain = self._memory.chain_of(model_id, unpack(sequence.tokens), "", "")
        assert chain is not None, "there was one for the first of them"
        restored = Restored(self._memory, chain, model, max(0.0, time.time() - sequence.used_at))

        def use(part: Part) -> None:
            if not self._take(restored, part):
                reading.abandoned = True
                sequences.clear()

        reading = Reading(
            model.fingerprint,
            root,
            sequence.tokens,
            self._kind(model_id),
            self._memory.tokens_of(chain),
            on_part=use,
            on_end=lambda: self._preload_next(model_id, model, root, sequences),
            can_wait=True,
        )
        self._files.read(reading)

    def _use(self, waiting: _Waiting, restored: Restored, part: Part) -> None:
        if not self._take(restored, part):
            self._end(waiting)

    def _take(self, restored: Restored, part: Part) -> bool:
        """Put what was read into memory. False if what may follow is of no use."""
        if self._models.get(restored.owner) is not restored.model:  # gone meanwhile
            return False
        for found, content in part:
            try:
                restored.take(found, content)
            except Exception as error:  # noqa: BLE001  whatever is wrong with a file, the prompt can be computed
                self._files.forget(found.record, f"{type(error).__name__}: {error}")
                restored.keep()
                return False
        return restored.keep()

    def _end(self, waiting: _Waiting) -> None:
        if waiting.is_over:
            return
        turns = self._turns[waiting.root]
        was_first = turns[0] is waiting
        self._let_go(waiting)
        while was_first and turns:
            model = self._models.get(turns[0].chain.owner)
            if model is not None and self._worth_s(model, turns[0].chain, waiting.root) is not None:
                self._read(model, turns[0])
                return
            self._let_go(turns[0])  # somebody has read it for another one meanwhile
        if not turns:
            del self._turns[waiting.root]

    def _let_go(self, waiting: _Waiting) -> None:
        waiting.is_over = True
        if waiting.reading is not None:
            waiting.reading.abandoned = True
        if waiting.timer is not None:
            waiting.timer.cancel()
        self._turns[waiting.root].remove(waiting)
        waiting.then()

    def telemetry(self) -> PrefixDiskTelemetry:
        return self._files.telemetry()


def _useful(chain: TokenChain) -> bytes:
    """What of a sequence may be read: its last token is computed in any case."""
    return pack(chain.token_ids[:-1])


def _root(model: KnownModel, chain: TokenChain, kind: RecordKind) -> Key:
    # In memory a model is known by the times of its files: here that would not suffice, nor outlive a move of them.
    return root_key(model.fingerprint, chain.salt, kind)


def _fingerprint(facts: str, libraries: Sequence[str], digests: Sequence[str]) -> str:
    """Models of one fingerprint compute the same from the same tokens: they have the same weights and configuration,
    and are computed by the same versions of the same libraries."""
    software = " ".join(f"{name} {version(name)}" for name in libraries)
    return hashlib.sha256(repr((facts, software, *digests)).encode()).hexdigest()[:40]
