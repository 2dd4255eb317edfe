import re
from collections.abc import Iterator

import pytest

from mlx_serving import errors
from mlx_serving.errors import BY_CODE, CircuitOpen, EngineError, InvalidConfig, InvalidRequest, Overloaded, from_code


def all_errors(root: type[EngineError] = EngineError) -> Iterator[type[EngineError]]:
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def make(cls: type[EngineError]) -> EngineError:
    return cls("it went wrong", retry_after=1.5) if issubclass(cls, Overloaded) else cls("it went wrong")


ERRORS = [cls for cls in all_errors() if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_is_an_exception_with_its_message(cls: type[EngineError]) -> None:
    error = make(cls)
    assert str(error) == error.message == "it went wrong"


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_has_a_status_of_failure_and_a_reserved_rpc_number(cls: type[EngineError]) -> None:
    assert 400 <= cls.http_status <= 599
    assert -32768 <= cls.rpc_code <= -32000
    assert re.fullmatch(r"[A-Z]\w+", cls.code)


@pytest.mark.parametrize("cls", [cls for cls in ERRORS if 400 <= cls.http_status < 429])
def test_what_the_caller_must_mend_is_never_retryable(cls: type[EngineError]) -> None:
    assert not cls.retryable


@pytest.mark.parametrize("cls", ERRORS)
def test_the_tree_in_the_docstring_draws_every_error(cls: type[EngineError]) -> None:
    assert errors.__doc__ is not None
    assert re.search(rf"\b{cls.__name__}\b", errors.__doc__)


@pytest.mark.parametrize("cls", [cls for cls in ERRORS if "code" in cls.__dict__])
def test_every_code_stands_for_one_class(cls: type[EngineError]) -> None:
    assert BY_CODE[cls.code] is cls


def test_details_leave_out_what_is_not_known() -> None:
    error = InvalidRequest("bad", field="top_p", limit=None, given=0)
    assert error.to_object() == {"code": "InvalidParams", "message": "bad", "details": {"field": "top_p", "given": 0}}


def test_the_ancestors_spelling_of_to_object_works() -> None:
    assert EngineError("x").toObject() == EngineError("x").to_object()


def test_an_overload_says_when_to_come_back() -> None:
    error = CircuitOpen("open", retry_after=1.23456)
    assert error.retry_after == 1.23456
    assert error.details == {"retry_after": 1.235}


def test_an_invalid_configuration_carries_its_issues() -> None:
    issues: list[dict[str, object]] = [{"path": "a.b", "message": "unknown"}]
    assert InvalidConfig("bad", issues=issues).details == {"issues": issues}


@pytest.mark.parametrize("cls", [cls for cls in ERRORS if "code" in cls.__dict__])
def test_an_error_survives_its_way_across_a_process_boundary(cls: type[EngineError]) -> None:
    sent = make(cls)
    got = from_code(sent.code, sent.message, sent.details)
    assert type(got) is cls
    assert got.to_object() == sent.to_object()


def test_rebuilt_errors_have_their_attributes() -> None:
    overloaded = from_code("Overloaded", "full", {"retry_after": 2.0})
    invalid = from_code("InvalidParams", "bad", {"field": "seed"})
    assert isinstance(overloaded, Overloaded)
    assert isinstance(invalid, InvalidRequest)
    assert (overloaded.retry_after, invalid.field) == (2.0, "seed")


def test_an_unknown_code_becomes_a_plain_error() -> None:
    error = from_code("Unheard", "strange")
    assert type(error) is EngineError
    assert error.to_object() == {"code": "RuntimeError", "message": "strange", "details": {}}


def test_rebuilt_errors_have_their_attributes_even_without_details() -> None:
    overloaded, invalid = from_code("Overloaded", "full"), from_code("InvalidParams", "bad")
    assert isinstance(overloaded, Overloaded)
    assert isinstance(invalid, InvalidRequest)
    assert overloaded.retry_after > 0
    assert invalid.field is None
