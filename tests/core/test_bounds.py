import math

import pytest

from mlx_serving.core.bounds import at_least, between, greater_than


@pytest.mark.parametrize("value", [1, 1.0, 2, 10**400])
def test_at_least_takes_the_minimum_and_more(value: float) -> None:
    at_least("x", value, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_called_so(value: float) -> None:
    with pytest.raises(ValueError, match=f"^x must be a finite number at least 1, got {value}$"):
        at_least("x", value, 1)
    with pytest.raises(ValueError, match=f"^x must be a finite number greater than 0, got {value}$"):
        greater_than("x", value, 0)


@pytest.mark.parametrize("value", [0, 0.999, -1])
def test_at_least_names_the_field_the_limit_and_the_value(value: float) -> None:
    with pytest.raises(ValueError, match=f"^x must be at least 1, got {value}$"):
        at_least("x", value, 1)


def test_greater_than_takes_more_than_the_limit() -> None:
    greater_than("x", 0.001, 0)


@pytest.mark.parametrize("value", [0, -1])
def test_greater_than_names_the_field_the_limit_and_the_value(value: float) -> None:
    with pytest.raises(ValueError, match=f"^x must be greater than 0, got {value}$"):
        greater_than("x", value, 0)


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_between_takes_both_ends(value: float) -> None:
    between("x", value, 0, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_between_names_the_field_the_limits_and_the_value(value: float) -> None:
    with pytest.raises(ValueError, match=f"^x must be between 0 and 1, got {value}$"):
        between("x", value, 0, 1)
