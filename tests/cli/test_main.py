from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_serving.cli.main import main

from ..command_line import command, environment, run

HEAVY = {
    "fastapi", "httpx2", "huggingface_hub", "mlx", "mlx_lm", "numpy", "psutil", "pydantic", "rich", "starlette",
    "structlog", "matplotlib", "tokenizers", "transformers", "uvicorn", "uvloop", "yaml",
}  # fmt: skip

VERBS = [
    (),
    ("serve",),
    ("generate",),
    ("chat",),
    ("models",),
    ("models", "list"),
    ("models", "pull"),
    ("models", "rm"),
    ("models", "info"),
    ("bench",),
    ("bench", "throughput"),
    ("bench", "latency"),
    ("cache",),
    ("doctor",),
    ("config",),
    ("config", "show"),
    ("config", "check"),
    ("config", "schema"),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_has_an_example_and_imports_nothing_heavy(verb: tuple[str, ...], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *command(*verb, "--help")],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert " ".join(["mlx-serving", *verb]) in ended.stdout.partition("example")[2]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert "argparse" in imported
    assert imported & HEAVY == set()


def test_without_a_verb_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    verbs = ("serve", "generate", "chat", "models", "bench", "cache", "keys", "doctor", "config")
    assert all(verb in out for verb in verbs)


def test_a_mistyped_verb_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sevre"]) == 2
    assert "did you mean serve?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--frobnicate"], ["serve", "--frobnicate"], ["models"], ["models", "burn"], ["generate"], ["bench"]]
)
def test_wrong_usage_ends_with_2_and_says_how_it_goes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: mlx-serving" in capsys.readouterr().err


def test_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--po", "1"])
    assert "unrecognized arguments: --po" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mlx-serving ")


@pytest.mark.parametrize("verb", ["serve", "generate", "chat", "doctor"])
def test_a_wrong_configuration_is_explained_before_anything_starts(verb: str, tmp_path: Path) -> None:
    (tmp_path / "mlx-serving.yaml").write_text("server: {prot: 9000}\n")
    ended = run(tmp_path, verb, *(["Hi"] if verb == "generate" else []))
    assert ended.returncode == (1 if verb == "doctor" else 2)
    told = ended.stdout if verb == "doctor" else ended.stderr
    assert "server.prot: unknown key" in told
    assert "did you mean server.port?" in told


@pytest.mark.parametrize("verb", ["serve", "generate", "chat"])
def test_an_unknown_model_is_an_error_in_one_line(verb: str, tmp_path: Path) -> None:
    ended = run(tmp_path, verb, *(["Hi"] if verb == "generate" else []), "--model", "smollm2-13m")
    assert ended.returncode == 1
    assert "did you mean 'smollm2-135m'?" in ended.stderr.splitlines()[-1]
    assert ended.stdout == ""


@pytest.mark.parametrize("verb", ["serve", "generate", "chat"])
def test_a_worker_that_cannot_be_started_is_an_error_with_its_reason(verb: str, tmp_path: Path) -> None:
    arguments = ["Hi"] if verb == "generate" else []
    arguments += ["--set", "worker.python=/no/such/python", "--set", "worker.max_restarts=0"]
    ended = run(tmp_path, verb, *arguments, "--set", "logging.level=error")
    assert ended.returncode == 1
    assert "cannot be started" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [("--help",), ("models", "list"), ("config", "schema")])
def test_a_reader_that_has_enough_is_no_failure(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        ended = subprocess.run(
            command(*arguments),
            env=environment(tmp_path),
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("arguments", [("--help",), ("models", "list"), ("config", "schema")])
def test_a_full_disk_is_told(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command(*arguments),
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == "mlx-serving: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("verb", [("serve",), ("generate", "hi"), ("chat",)])
def test_an_empty_flag_is_not_taken_for_none(tmp_path: Path, verb: tuple[str, ...]) -> None:
    ended = run(tmp_path, *verb, "--model", "")
    assert (ended.returncode, ended.stderr) == (2, "mlx-serving: --model must not be empty\n")


def test_ctrl_c_while_a_verb_is_imported_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_serving.cli.main.import_module", interrupted)
    assert main(["models", "list"]) == 130
    assert capsys.readouterr().err == "\n"
