from __future__ import annotations

from collections.abc import Mapping

import pytest

from mlx_serving.core.volatile_lines import without_volatile_lines

BILLING = "x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch=eb6c6;"
PROMPT = "You are a coding agent.\n\nBe brief."
USER: Mapping[str, object] = {"role": "user", "content": f"{BILLING}\nWhat is this line?"}


def system(content: object, role: str = "system") -> dict[str, object]:
    return {"role": role, "content": content}


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (f"{BILLING}\n{PROMPT}", PROMPT),
        (f"You are.\n  \t{BILLING}\nBe brief.", "You are.\nBe brief."),
        (f"{PROMPT}\n{BILLING}", PROMPT),
        (f"{BILLING}\r\n{PROMPT}", PROMPT),
        (f"The line `{BILLING}` is left out.", f"The line `{BILLING}` is left out."),
        (PROMPT, PROMPT),
        ("", ""),
        (
            [
                {"type": "text", "text": BILLING},
                {"type": "text", "text": PROMPT, "cache_control": None},
                {"text": 5},
                7,
            ],
            [{"type": "text", "text": PROMPT, "cache_control": None}, {"text": 5}, 7],
        ),
        ([{"type": "text", "text": f"{BILLING}\nHello"}], [{"type": "text", "text": "Hello"}]),
        (None, None),
    ],
)
def test_what_changes_with_every_request_is_left_out(role: str, content: object, kept: object) -> None:
    message = {**system(content, role), "name": "n"}
    assert without_volatile_lines((message, USER)) == ({**message, "content": kept}, USER)


@pytest.mark.parametrize("content", [BILLING, [{"type": "text", "text": BILLING}]])
def test_a_message_of_nothing_else_goes(content: object) -> None:
    assert without_volatile_lines((system(content), USER)) == (USER,)


def test_more_lines_can_be_named() -> None:
    message = system(f"{BILLING}\nCurrent time: 12:01\n{PROMPT}\nSession: 7")
    assert without_volatile_lines((message,), ("Current time:", "Session:")) == (system(PROMPT),)
    assert without_volatile_lines((message,)) == (system(f"Current time: 12:01\n{PROMPT}\nSession: 7"),)
