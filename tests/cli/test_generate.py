from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from ..command_line import LIMIT_S, command, environment, run
from ..pictures import png

GREEDY = ("--temperature", "0", "--max-tokens", "6")


def test_the_answer_of_the_embedded_model_is_printed(tmp_path: Path) -> None:
    ended = run(tmp_path, "generate", "-", "--max-tokens", "20", stdin="What is the capital of France?")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Paris" in ended.stdout
    assert ended.stdout.endswith("\n")


def test_json_has_the_text_the_reason_and_the_measures(tmp_path: Path, tiny_model: Path) -> None:
    model = ("--model", str(tiny_model))
    plain = run(tmp_path, "generate", "Hello", *GREEDY, *model)
    ended = run(tmp_path, "generate", "Hello", *GREEDY, *model, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    answer = json.loads(ended.stdout)
    assert answer["text"] + "\n" == plain.stdout
    assert (answer["model"], answer["finish_reason"]) == (tiny_model.name, "length")
    assert answer["stats"]["tokens_generated"] == 6


def test_raw_continues_the_text_without_the_template(tmp_path: Path, tiny_model: Path) -> None:
    ended = run(tmp_path, "generate", "--raw", "Hello", *GREEDY, "--model", str(tiny_model), "--json")
    assert json.loads(ended.stdout)["stats"]["prompt_tokens"] == len("Hello")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["Hi", "--temperature", "9"], "temperature must be a number of at least 0 and at most 2, got 9"),
        (["Hi", "--max-tokens", "-4"], "max_tokens must be a whole number of at least 1, got -4"),
        (["Hi", "--top-k", "x"], "--top-k"),
        ([""], "the prompt is empty"),
        (["Hi", "--raw", "--system", "x"], "--system needs the chat template"),
        (["Hi", "--raw", "--image", "x.png"], "--image needs the chat template"),
    ],
)
def test_wrong_values_end_with_2_before_anything_starts(tmp_path: Path, arguments: list[str], told: str) -> None:
    ended = run(tmp_path, "generate", *arguments)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert ended.stdout == ""


def test_a_draft_model_changes_the_stats_and_not_the_answer(tmp_path: Path, tiny_model: Path) -> None:
    arguments = ("generate", "Hello", *GREEDY, "--max-tokens", "30", "--model", str(tiny_model), "--json")
    plain = json.loads(run(tmp_path, *arguments).stdout)
    drafted = json.loads(run(tmp_path, *arguments, "--draft-model", str(tiny_model)).stdout)
    assert drafted["text"] == plain["text"]
    assert (plain["stats"]["speculation"], drafted["stats"]["speculation"]) == ("ngram", "draft")
    assert drafted["stats"]["accepted_tokens"] == drafted["stats"]["drafted_tokens"]
    absent = run(tmp_path, *arguments, "--draft-model", "./nowhere")
    assert (absent.returncode, absent.stderr) == (1, f"mlx-serving: {tmp_path}/nowhere does not exist\n")


def test_a_prompt_over_the_context_is_told_once(tmp_path: Path, tiny_model: Path) -> None:
    cap = ("--set", "models.served.0.context_length=20")
    ended = run(tmp_path, "generate", "x" * 30, "--model", str(tiny_model), *cap)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "20" in ended.stderr


def test_ctrl_c_ends_it_with_130(tmp_path: Path, tiny_model: Path) -> None:
    with subprocess.Popen(
        command("generate", "Hello", "--model", str(tiny_model), "--max-tokens", "4000", "--temperature", "0"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) != b""
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b"\n"
        assert process.wait(LIMIT_S) == 130


def test_pictures_are_read_from_where_the_command_is_run(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png())
    ended = run(tmp_path, "generate", "What is it?", "--image", "photo.png", "--model", str(tiny_model))
    assert ended.returncode != 0
    assert "--image (number 1): the model" in ended.stderr
    assert "takes no pictures" in ended.stderr


def test_bytes_that_are_no_text_are_called_that(tmp_path: Path, tiny_model: Path) -> None:
    ended = subprocess.run(
        command("generate", "-", "--model", str(tiny_model)),
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONUTF8": "1"},
        input=b"\xff\xfe",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (2, b"mlx-serving: the prompt is not UTF-8 text\n")
