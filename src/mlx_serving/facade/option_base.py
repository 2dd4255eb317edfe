"""What all parameters of the engine's methods have in common."""

from __future__ import annotations

from pydantic import AliasChoices, BaseModel, ConfigDict

from mlx_serving.facade.shapes import camel


def either(name: str, *more: str) -> AliasChoices:
    """A parameter's two spellings, and other names that it has."""
    return AliasChoices(name, camel(name), *more)


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
