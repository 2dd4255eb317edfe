"""Drafting, as programs ask for it and hear of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import Field

from mlx_serving.core.speculation import report as draft_report
from mlx_serving.core.speculation import request
from mlx_serving.core.speculation.request import MAX_DRAFT_TOKENS, SpeculationMethod
from mlx_serving.errors import InvalidRequest
from mlx_serving.facade.option_base import Options, either
from mlx_serving.facade.shapes import Shape
from mlx_serving.wire.methods import MAX_TEXT_CHARS


class SpeculationFields(Options):
    """`speculation` says who drafts tokens that the model then checks: `ngram` the text so far, `draft` the
    `draft_model`, the name of a smaller one, `off` nobody; `auto` is the draft model if one is named, else what holds
    for the model. At most `num_draft_tokens` are drafted at a time. `prediction` is what the answer is thought to be,
    much of it, which is then looked up like the text so far. No answer depends on it."""

    speculation: SpeculationMethod = "auto"
    draft_model: str | None = Field(default=None, validation_alias=either("draft_model"), min_length=1, max_length=4096)
    num_draft_tokens: int | None = Field(
        default=None, validation_alias=either("num_draft_tokens"), ge=1, le=MAX_DRAFT_TOKENS
    )

    prediction: str | None = Field(default=None, max_length=MAX_TEXT_CHARS)

    def to_speculation(self) -> request.Speculation:
        """Raises `InvalidRequest` for what contradicts itself."""
        wanted = request.Speculation(
            self.speculation, self.draft_model, self.num_draft_tokens, prediction=self.prediction
        )
        if wanted.problem is not None:
            field, rule = wanted.problem
            raise InvalidRequest(f"{field} {rule}", field=field)
        return wanted


@dataclass(frozen=True, slots=True)
class ComparedModel(Shape):
    id: str
    vocab_size: int | None
    parameter_count: int
    architecture: str


@dataclass(frozen=True, slots=True)
class PerformanceEstimate(Shape):
    """For people: like `1.85x`, and `25.0%` of the parameters. `N/A` where there is nothing to say."""

    expected_speedup: str
    size_ratio: str
    recommendation: str


@dataclass(frozen=True, slots=True)
class CompatibilityDetails(Shape):
    primary_model: ComparedModel
    draft_model: ComparedModel
    performance_estimate: PerformanceEstimate


@dataclass(frozen=True, slots=True)
class CompatibilityReport(Shape):
    """Whether one model can draft for another. If not, `errors` say why; `warnings` are what may make drafts worse."""

    compatible: bool
    errors: list[str]
    warnings: list[str]
    details: CompatibilityDetails

    @classmethod
    def of(cls, report: draft_report.CompatibilityReport) -> Self:
        estimate = report.details.performance_estimate
        return cls(
            report.compatible,
            list(report.errors),
            list(report.warnings),
            CompatibilityDetails(
                _compared(report.details.primary_model),
                _compared(report.details.draft_model),
                PerformanceEstimate(estimate.expected_speedup, estimate.size_ratio, estimate.recommendation),
            ),
        )


def _compared(model: draft_report.ReportedModel) -> ComparedModel:
    return ComparedModel(model.id, model.vocab_size, model.parameter_count, model.architecture)
