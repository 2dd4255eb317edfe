from __future__ import annotations

import pytest

from mlx_serving.server.settings import ServerSettings


@pytest.mark.parametrize("name", ["max_body_bytes", "body_timeout_s", "keepalive_s", "request_timeout_s"])
def test_a_limit_that_admits_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .* got 0"):
        ServerSettings(**{name: 0})  # pyright: ignore[reportArgumentType]  the name is a parameter of the test
