"""A Backend layer that names the fields of a refused request as the client's API does."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.errors import InvalidRequest


class ClientFields:
    """`names` maps the engine's names of fields to the client's, where these differ."""

    def __init__(self, inner: Backend, names: Mapping[str, str]) -> None:
        self._inner = inner
        self._names = names

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        try:
            async with self._inner.generate(request) as deltas:
                yield deltas
        except InvalidRequest as error:
            raise _renamed(error, self._names) from error


def _renamed(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    renamed = copy.copy(error)
    # A name that is an ordinary word, such as `prompt`, is no field where it stands in a sentence.
    identifiers = [name for name in names if "_" in name]
    if identifiers:
        pattern = rf"\b({'|'.join(map(re.escape, identifiers))})\b"
        renamed.message = re.sub(pattern, lambda found: names[found[1]], error.message)
    renamed.args = (renamed.message,)
    if error.field is not None:
        renamed.field = names.get(error.field, error.field)
        renamed.details = {**error.details, "field": renamed.field}
    return renamed
