"""What `serve` tells. What it serves is tested end to end."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import httpx2
import pytest

from ..command_line import command, environment, run
from .terminal import at_terminal

CTRL_C = "\x03"


def test_at_a_terminal_it_ends_in_one_calm_screen_and_ctrl_c_stops_it(tmp_path: Path, tiny_model: Path) -> None:
    arguments = ("serve", "--port", "0", "--model", str(tiny_model))
    with at_terminal(command(*arguments), tmp_path, environment(tmp_path)) as terminal:
        terminal.expect("Ctrl-C finishes what is running and stops; a second Ctrl-C stops at once.")
        screen = terminal.seen
        found = re.search(r"mlx-serving is ready at (http://127\.0\.0\.1:\d+)", screen)
        assert found is not None
        url = found[1]
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["id"] == tiny_model.name
        terminal.expect("/v1/models")  # requests are logged
        terminal.type(CTRL_C)
        assert terminal.ended() == 0
    first, second, *_ = screen.splitlines()
    assert (first, second) == (f"starting {tiny_model.name} …", "")  # no log lines in between
    assert f"curl {url}/v1/chat/completions" in screen
    assert f"{tiny_model.name}  (default, ready, context 4096 tokens)" in screen
    assert f"base_url={url}/v1" in screen
    assert "Device(" not in screen
    assert "runtime:status" not in terminal.seen
    assert terminal.seen.rstrip().endswith("stopped")


def test_closing_the_terminal_stops_it(tmp_path: Path, tiny_model: Path) -> None:
    arguments = ("serve", "--port", "0", "--model", str(tiny_model))
    with at_terminal(command(*arguments), tmp_path, environment(tmp_path)) as terminal:
        terminal.expect("Ctrl-C finishes what is running")
        assert terminal.hang_up() == 0


def test_ctrl_c_during_the_start_ends_it(tmp_path: Path, tiny_model: Path) -> None:
    arguments = ("serve", "--port", "0", "--model", str(tiny_model))
    with at_terminal(command(*arguments), tmp_path, environment(tmp_path)) as terminal:
        terminal.expect("starting")
        terminal.type(CTRL_C)
        assert terminal.ended() in (0, 130)
    assert "Traceback" not in terminal.seen


def test_a_port_in_use_is_told_with_what_to_do(tmp_path: Path, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(tmp_path, "serve", "--port", str(port), "--model", str(tiny_model))
    assert ended.returncode == 2
    assert "the port is already in use" in ended.stderr
    assert str(port) in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_wrong_port_is_told_with_its_limits(tmp_path: Path, port: str) -> None:
    ended = run(tmp_path, "serve", f"--port={port}")
    assert ended.returncode == 2
    assert "set by: flag --port" in ended.stderr
    assert "0 to 65535" in ended.stderr


def test_a_default_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    model = tmp_path / "broken"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    ended = run(tmp_path, "serve", "--port", "0", "--model", str(model), "--set", "logging.level=error")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("mlx-serving: ")
    assert str(model) in last
