"""When a silent stream gets a comment."""

from __future__ import annotations

from mlx_serving.core.keep_alive import Look, comment_due


def test_silence_with_progress_is_broken_by_a_comment() -> None:
    assert comment_due(Look(sent=3, progress=10), Look(sent=3, progress=11))


def test_silence_without_progress_stays() -> None:
    assert not comment_due(Look(sent=3, progress=10), Look(sent=3, progress=10))


def test_who_was_sent_something_needs_no_comment() -> None:
    assert not comment_due(Look(sent=3, progress=10), Look(sent=4, progress=11))
