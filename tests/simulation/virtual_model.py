"""A device without arithmetic: the token at each place of an answer follows from the seed, the prompt and the place.

So the undisturbed answer to every request is known, whatever happens to the workers that serve it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from zlib import crc32

from mlx_serving.core.generation import FinishReason
from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.schedule.scheduling import PrefillChunk
from mlx_serving.wire.notifications import Completed
from mlx_serving.worker.batch import Token
from mlx_serving.worker.job import Job
from mlx_serving.worker.model_runner import Offer
from mlx_serving.worker.prefix.cache import Beginning
from mlx_serving.worker.sequence import Ending, RunningSequence
from mlx_serving.worker.speculation.model_drafter import ModelDrafter
from mlx_serving.worker.speculation.speculator import Speculator

from .virtual_time import VirtualTime

_PIECES = tuple(b"abcd efg") + tuple("é".encode()) + (0x80,)
"""The byte of each token id: two make a character together, in vain or not, and one never makes sense."""

END_OF_TEXT = len(_PIECES)
POISON = END_OF_TEXT + 1
"""A prompt that begins with it kills the worker at the place which the prompt's second token tells."""
VOCABULARY = 64
_END_OF_TEXT_ODDS = 60

STEP_S, ROW_S, PREFILL_TOKEN_S = 0.02, 0.002, 0.0005


class DeviceAbort(BaseException):
    """The device takes the process down; no handler of errors sees that. `culprit` is the stream that brought it about,
    if one did."""

    def __init__(self, culprit: str | None = None) -> None:
        super().__init__()
        self.culprit = culprit


def decode(token_ids: Sequence[int]) -> str:
    return bytes(_PIECES[id] for id in token_ids if id < END_OF_TEXT).decode(errors="replace")  # noqa: A001


def token_at(seed: int, prompt: Sequence[int], place: int) -> int:
    drawn = crc32(repr((seed, tuple(prompt), place)).encode())
    return END_OF_TEXT if drawn % _END_OF_TEXT_ODDS == 0 else drawn % END_OF_TEXT


@dataclass(frozen=True, slots=True)
class Answer:
    """`texts[n]` is what is shown when n tokens were delivered and it goes on; `text` is what is shown in the end.
    `generated` tokens are counted, one that ends the text among them."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    text: str
    reason: FinishReason
    generated: int

    def allows(self, tokens: Sequence[int], text: str) -> bool:
        """Whether a reader may have seen this much and no more."""
        count = len(tokens)
        if tuple(tokens) != self.tokens[:count]:
            return False
        ongoing = count < len(self.texts) and text == self.texts[count]
        return ongoing or (count == len(self.tokens) and text == self.text)


def undisturbed(seed: int, prompt: Sequence[int], ending: Ending) -> Answer:
    sequence = RunningSequence("alone", prompt, ending, decode, 0.0)
    tokens: list[int] = []
    texts = [""]
    while True:
        row = sequence.accept(token_at(seed, prompt, len(tokens)), 0.0)
        tokens += row.token_ids
        texts.append(texts[-1] + row.text)
        if isinstance(row.end, Completed):
            end = row.end
            return Answer(tuple(tokens), tuple(texts[:-1]), texts[-1], end.finish_reason, end.stats.tokens_generated)


@dataclass(slots=True)
class _Row:
    """`cached` tokens of prompt and answer were computed; None: it has no cache."""

    job: Job
    drawn: list[int]
    cached: int | None = None

    @property
    def is_fatal(self) -> bool:
        prompt = self.job.token_ids
        return prompt[0] == POISON and len(self.drawn) >= prompt[1]


class VirtualRunner:
    """Does what `worker.model_runner.ModelRunner` does, and holds the scheduler to its word about every cache."""

    def __init__(self, clock: VirtualTime) -> None:
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._unread: list[str] = []
        self.offer: Offer | None = None  # nothing is kept here
        self.speculator = Speculator(ModelDrafter, able=False, weight_bytes=1)  # and nobody drafts
        self.is_checking = False

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def cache_bytes(self) -> int:
        return sum(row.cached or 0 for row in self._rows.values())

    def open(self, job: Job) -> None:
        assert job.stream_id not in self._rows
        self._rows[job.stream_id] = _Row(job, list(job.drawn))

    @property
    def kept(self) -> Collection[str]:
        """Nobody forks here."""
        return ()

    def admit(self, stream_id: str, fork_of: str | None = None, beginning: Beginning | None = None) -> None:
        assert fork_of is None
        assert beginning is None
        row = self._rows[stream_id]
        assert row.cached is None, "admitted twice"
        row.cached = 0

    def spans(self, job: Job) -> tuple[ImageSpan, ...]:
        """Nobody shows an image here."""
        assert not job.pictures
        return ()

    def token_ids(self, stream_id: str) -> list[int]:
        row = self._rows[stream_id]
        return [*row.job.token_ids, *row.drawn]

    def run(self, decode: Sequence[str], prefill: Sequence[PrefillChunk], ending: Collection[str]) -> list[Token]:
        begun = [chunk.id for chunk in prefill if self._compute(chunk)]
        launched = [id for id in (*decode, *begun) if id in self._rows]  # noqa: A001
        self._clock.ahead_s += STEP_S + ROW_S * len(launched)
        tokens = self.drain()
        for stream_id in launched:
            row = self._rows[stream_id]
            if row.is_fatal:
                raise DeviceAbort(stream_id)
            assert row.cached is not None, "decoded without a cache"
            row.cached += 1
        self._unread = launched
        return tokens

    def drain(self) -> list[Token]:
        tokens: list[Token] = []
        for stream_id in self._unread:
            row = self._rows[stream_id]
            token = token_at(row.job.seed, row.job.token_ids, len(row.drawn))
            row.drawn.append(token)
            tokens.append(Token(stream_id, token))
        self._unread = []
        return tokens

    def evict(self, stream_id: str) -> None:
        self._leave(stream_id)
        row = self._rows.get(stream_id)
        if row is not None:  # else the token that was read before was its last
            row.cached = None

    def remove(self, stream_id: str) -> None:
        self._leave(stream_id)
        self._rows.pop(stream_id, None)

    def close(self) -> None:
        assert not self._rows, "a model goes while it is used"

    def _compute(self, chunk: PrefillChunk) -> bool:
        row = self._rows.get(chunk.id)
        if row is None:
            return False
        assert row.cached is not None, "computed without a cache"
        assert row.cached == chunk.start, "a chunk that does not follow the one before"
        self._clock.ahead_s += PREFILL_TOKEN_S * chunk.count
        row.cached += chunk.count - (1 if chunk.last else 0)
        if chunk.last:
            assert chunk.start + chunk.count == len(row.job.token_ids) + len(row.drawn), "a prompt cut short"
        return chunk.last

    def _leave(self, stream_id: str) -> None:
        self._unread = [id for id in self._unread if id != stream_id]  # noqa: A001
