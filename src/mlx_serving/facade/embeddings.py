"""What `Engine.embed` and `Engine.rerank` take and give."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import AliasChoices, Field

from mlx_serving.core.embedding.embeddings import Embeddings, floats
from mlx_serving.core.generation import EmbeddingInputs, GenerationRequest, Priority
from mlx_serving.facade.option_base import Options
from mlx_serving.facade.shapes import Shape

_Text: TypeAlias = Annotated[str, Field(min_length=1)]
_Tokens: TypeAlias = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Truncate: TypeAlias = Annotated[
    int | None,
    Field(validation_alias=AliasChoices("truncate_prompt_tokens", "truncatePromptTokens"), ge=-1),
]


class _EmbeddingOptions(Options):
    """`truncate_prompt_tokens` cuts longer inputs, -1 to as many tokens as the model takes; without it they are
    errors."""

    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1)
    truncate_prompt_tokens: _Truncate = None
    timeout_ms: float | None = Field(default=None, validation_alias=AliasChoices("timeout_ms", "timeoutMs"), gt=0)
    priority: Priority = "normal"

    def request_for(self, inputs: EmbeddingInputs) -> GenerationRequest:
        return GenerationRequest(
            request_id=str(uuid.uuid4()),
            model=self.model,
            prompt=inputs,
            priority=self.priority,
            timeout_s=None if self.timeout_ms is None else self.timeout_ms / 1000,
        )


class EmbedParams(_EmbeddingOptions):
    """`input` is a text, the token ids of one, or a list of several of either."""

    input: _Text | Annotated[list[_Text] | _Tokens | list[_Tokens], Field(min_length=1)]
    dimensions: int | None = Field(default=None, ge=1)

    def to_inputs(self) -> EmbeddingInputs:
        given = self.input
        inputs: tuple[str | tuple[int, ...], ...]
        if isinstance(given, str):
            inputs = (given,)
        else:
            ids = tuple(each for each in given if isinstance(each, int))
            texts = tuple(each if isinstance(each, str) else tuple(each) for each in given if not isinstance(each, int))
            inputs = (ids,) if ids else texts
        return EmbeddingInputs(inputs, dimensions=self.dimensions, truncate_to=self.truncate_prompt_tokens)


class RerankParams(_EmbeddingOptions):
    """`top_n`: only so many of the best."""

    query: _Text
    documents: Annotated[list[_Text], Field(min_length=1)]
    top_n: int | None = Field(default=None, validation_alias=AliasChoices("top_n", "topN"), ge=1)

    def to_inputs(self) -> EmbeddingInputs:
        return EmbeddingInputs(tuple(self.documents), (self.query,), truncate_to=self.truncate_prompt_tokens)


@dataclass(frozen=True, slots=True)
class EmbeddingResult(Shape):
    """One vector for each input, in their order."""

    embeddings: list[list[float]]
    prompt_tokens: int

    @classmethod
    def of(cls, made: Embeddings) -> EmbeddingResult:
        return cls([floats(vector) for vector in made.vectors], made.prompt_tokens)


@dataclass(frozen=True, slots=True)
class RankedDocument(Shape):
    """`index` in the documents that were given."""

    index: int
    score: float


def ranked(made: Embeddings, top_n: int | None) -> list[RankedDocument]:
    """The best first."""
    scores = [floats(vector)[0] for vector in made.vectors]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [RankedDocument(index, scores[index]) for index in best[:top_n]]
