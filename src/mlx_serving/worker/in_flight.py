"""A sequence in flight: what the device computes for it, and what its reader is told."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mlx_serving.core.speculation.policy import Drafting
from mlx_serving.errors import GenerationError
from mlx_serving.wire.notifications import Completed, Row
from mlx_serving.worker.batch import Token
from mlx_serving.worker.job import Job
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.sampling.logprobs import name
from mlx_serving.worker.sequence import RunningSequence


@dataclass(slots=True)
class InFlight:
    """`begun`: the runner has computed something for it, or is about to. `drafting` is there if that was asked for."""

    model: LoadedModel
    sequence: RunningSequence
    job: Job
    drafting: Drafting | None
    begun: bool = False

    def accept(self, token: Token, now: float) -> Row:
        """What its reader is told of its next token, at time `now` (seconds, monotonic). A row with an `end` is the
        last."""
        try:
            named = None if token.logprobs is None else name(token.token_id, token.logprobs, self.model.token_bytes)
            row = self.sequence.accept(token.token_id, now, named, is_last=token.is_last)
        except Exception as cause:  # noqa: BLE001  a token that cannot become text fails its own stream only
            return self.sequence.failed(failure(self.model, "could not be decoded", cause))
        if row.token_ids and (cached := self.sequence.untold()) is not None:
            row = msgspec.structs.replace(row, cached_tokens=cached)
        return row if row.end is None else self._with_drafts(row)

    def aborted(self, now: float) -> Row:
        return self._with_drafts(self.sequence.aborted(now))

    def _with_drafts(self, row: Row) -> Row:
        """The last row, and what was drafted."""
        drafting = self.drafting
        if drafting is None or not isinstance(row.end, Completed):
            return row
        stats = msgspec.structs.replace(
            row.end.stats,
            drafted_tokens=drafting.drafted,
            accepted_tokens=drafting.accepted,
            speculation=drafting.outcome,
        )
        return msgspec.structs.replace(row, end=msgspec.structs.replace(row.end, stats=stats))


def failure(model: LoadedModel, what: str, cause: Exception) -> GenerationError:
    """What is said of a sequence of the model to which something has happened."""
    return GenerationError(
        f"A sequence of {model.model_id} {what}: {type(cause).__name__}: {cause}", model=model.model_id
    )
