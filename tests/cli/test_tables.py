from __future__ import annotations

import pytest

from mlx_serving.cli.tables import bytes_text, print_pairs, print_table


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (98 << 20, "98.0 MiB"), (5 << 40, "5.0 TiB"), (None, "")],
)
def test_sizes_are_read_by_people(size: object, text: str) -> None:
    assert bytes_text(size) == text


def test_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [("long name", 1), ("x", None)])
    assert capsys.readouterr().out == "a          b\nlong name  1\nx\n"


def test_pairs_leave_out_what_is_not_known_and_speak_no_python(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs({"template": True, "quantization": None, "n": 1})
    assert capsys.readouterr().out == "template      yes\nn             1\n"
