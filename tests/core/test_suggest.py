import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.suggest import did_you_mean, unknown_key_message

NAMES = ["max_tokens", "temperature", "top_p", "heartbeat_interval_s"]


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("max_token", "max_tokens"),
        ("temprature", "temperature"),
        ("MAX-TOKENS", "max_tokens"),
        ("hartbeat_interval", "heartbeat_interval_s"),
        ("colour", None),
        ("", None),
    ],
)
def test_the_closest_name_is_suggested_if_any_is_close(given_name: str, expected: str | None) -> None:
    assert did_you_mean(given_name, NAMES) == expected


def test_nothing_is_suggested_when_nothing_is_allowed() -> None:
    assert did_you_mean("x", []) is None


@given(given_name=st.text(), allowed=st.lists(st.text(), max_size=5))
def test_a_suggestion_is_always_one_of_the_allowed_names(given_name: str, allowed: list[str]) -> None:
    assert did_you_mean(given_name, allowed) in {None, *allowed}


@given(allowed=st.lists(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), min_size=1, max_size=5))
def test_a_name_that_exists_suggests_itself(allowed: list[str]) -> None:
    assert did_you_mean(allowed[0], allowed) == allowed[0]


def test_the_message_suggests_the_close_name() -> None:
    assert unknown_key_message("top_pp", NAMES) == "unknown key 'top_pp'; did you mean 'top_p'?"


def test_the_message_lists_what_is_allowed_when_nothing_is_close() -> None:
    expected = "unknown parameter 'zzz'; allowed: heartbeat_interval_s, max_tokens, temperature, top_p"
    assert unknown_key_message("zzz", NAMES, "parameter") == expected


def test_the_message_says_that_nothing_is_allowed() -> None:
    assert unknown_key_message("zzz", []) == "unknown key 'zzz'; none is allowed here"
