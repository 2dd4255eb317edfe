"""Which loaded models can draft for which, found out once for each pair."""

from __future__ import annotations

from mlx_serving.core.speculation.report import CompatibilityReport, PairMember, compare
from mlx_serving.errors import InvalidRequest
from mlx_serving.worker.loading.loaded_model import LoadedModel

_REMEMBERED = 64


class DraftPairs:
    """Belongs to the tokenizer thread."""

    def __init__(self) -> None:
        self._reports: dict[tuple[str, str], CompatibilityReport] = {}

    def report(self, primary: LoadedModel, draft: LoadedModel) -> CompatibilityReport:
        """See `core.speculation.report`."""
        pair = _known_by(primary), _known_by(draft)
        report = self._reports.get(pair)
        if report is None:
            report = compare(_member(primary), _member(draft))
            while len(self._reports) >= _REMEMBERED:
                del self._reports[next(iter(self._reports))]
            self._reports[pair] = report
        return report.called(primary.model_id, draft.model_id)

    def require(self, primary: LoadedModel, draft: LoadedModel) -> None:
        """Raises `InvalidRequest` for a pair that is not compatible."""
        report = self.report(primary, draft)
        if not report.compatible:
            raise InvalidRequest(
                f"draft_model: {draft.model_id} cannot draft for {primary.model_id}: " + "; ".join(report.errors),
                field="draft_model",
                given=draft.model_id,
            )


def _known_by(model: LoadedModel) -> str:
    return f"{model.fingerprint} {model.facts.cached_path}"


def _member(model: LoadedModel) -> PairMember:
    facts = model.facts
    return PairMember(
        id=facts.model_id,
        vocab_size=facts.vocab_size,
        parameter_count=facts.parameter_count,
        architecture=facts.model_type,
        memory_bytes=facts.memory_bytes,
        can_draft=model.cuttable and facts.capabilities.batch,
        vocabulary=model.tokenizer.vocabulary(),
    )
