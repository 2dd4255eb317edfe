"""The served models in the words of Anthropic's API, for its clients: they ask at the same paths as OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field
from starlette.requests import Request

from mlx_serving.core.serving import ServedModel
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.server.openai.documents import Document

_KNOWN = ("limit", "after_id", "before_id")
_MAX_LISTED = 1000
_LISTED = 20


class AnthropicModel(Document):
    """A model for clients that send `anthropic-version`."""

    id: str
    type: Literal["model"] = "model"
    display_name: str
    created_at: str = Field(description="RFC 3339.")
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None = Field(description="The context; null before the model was loaded.")
    max_tokens: int | None = Field(description="The same: an answer may take what the prompt leaves.")


class AnthropicModelList(Document):
    data: list[AnthropicModel]
    first_id: str | None
    last_id: str | None
    has_more: bool


def is_from_anthropics_client(request: Request) -> bool:
    """All of them send the version of the API."""
    return "anthropic-version" in request.headers


def anthropic_model(model: ServedModel) -> AnthropicModel:
    return AnthropicModel(
        id=model.name,
        display_name=model.name,
        created_at=datetime.fromtimestamp(model.created, UTC).isoformat(),
        max_input_tokens=model.context_length,
        max_tokens=model.context_length,
    )


def anthropic_models(models: Sequence[ServedModel], params: Mapping[str, str]) -> AnthropicModelList:
    """A page of them: at most `limit` behind `after_id`, else those right before `before_id`.

    Raises `InvalidRequest` for parameters that do not fit, `UnsupportedParameter` for others.
    """
    for name in params:
        if name not in _KNOWN:
            raise UnsupportedParameter(f"{name[:80]} is not supported by this server", field=name[:80])
    if "after_id" in params and "before_id" in params:
        raise InvalidRequest("after_id and before_id are not allowed together", field="before_id")
    limit = _limit(params.get("limit", str(_LISTED)))
    names = [model.name for model in models]
    if "before_id" in params:
        end = _place(names, "before_id", params["before_id"])
        begin = max(0, end - limit)
        more = begin > 0
    else:
        begin = _place(names, "after_id", params["after_id"]) + 1 if "after_id" in params else 0
        end = begin + limit
        more = end < len(models)
    page = [anthropic_model(model) for model in models[begin:end]]
    return AnthropicModelList(
        data=page, first_id=page[0].id if page else None, last_id=page[-1].id if page else None, has_more=more
    )


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= _MAX_LISTED):
        rule = f"limit must be a whole number from 1 to {_MAX_LISTED}"
        raise InvalidRequest(f"{rule}, got {text[:80]!r}", field="limit", limit=_MAX_LISTED)
    return int(text)


def _place(names: Sequence[str], field: str, name: str) -> int:
    if name not in names:
        raise InvalidRequest(f"{field} must be the id of a model, got {name[:80]!r}", field=field)
    return names.index(name)
