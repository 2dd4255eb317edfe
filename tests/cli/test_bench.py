from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..command_line import run

TINY = ("--requests", "4", "--prompt-tokens", "16", "--output-tokens", "4", "--warmup", "1")
QUIET = ("--set", "logging.level=error")


def test_throughput_of_the_engine_in_figures_a_report_and_a_picture(tmp_path: Path, tiny_model: Path) -> None:
    files = ("--json", "figures.json", "--markdown", "report.md", "--plot", "picture.png")
    asked = ("throughput", "--target", "engine", "--concurrency", "1", "2", "--model", str(tiny_model))
    ended = run(tmp_path, "bench", *asked, *TINY, *files)
    assert (ended.returncode, ended.stderr) == (0, "")
    header, first, second, state = ended.stdout.splitlines()
    assert "output tokens/s" in header
    assert first.split()[:3] == ["engine", "1", "concurrent"]
    assert second.split()[:3] == ["engine", "2", "concurrent"]
    assert state.startswith("warm (1 requests before")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [result["load"]["concurrency"] for result in figures["results"]] == [1, 2]
    assert all(result["prompt_tokens"]["p50"] == 16 for result in figures["results"])
    assert figures["failures"] == {}
    assert (tmp_path / "report.md").read_text().startswith("# mlx-serving bench throughput\n")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_latency_of_the_server_compared_with_the_engine_as_json(tmp_path: Path, tiny_model: Path) -> None:
    asked = ("latency", "--rate", "100", "--compare", "engine", "--rounds", "1", "--model", str(tiny_model))
    ended = run(tmp_path, "bench", *asked, *TINY, *QUIET, "--json", "-", "--slo", "ttft=60000", "e2e=90000")
    assert (ended.returncode, ended.stderr) == (0, "")
    figures = json.loads(ended.stdout)
    assert [target["name"] for target in figures["targets"]] == ["server", "engine"]
    assert [target["model"] for target in figures["targets"]] == [tiny_model.name] * 2
    assert figures["objectives"] == {"ttft_s": 60.0, "tpot_s": None, "e2e_s": 90.0}
    [comparison] = figures["comparisons"]
    assert comparison["ratio_of"] == ["server", "engine"]
    assert "ttft_p99" in comparison["ratios"]


def test_requests_that_fail_are_counted_and_end_with_1(tmp_path: Path, tiny_model: Path) -> None:
    asked = ("throughput", "--target", "engine", "--model", str(tiny_model), "--markdown", "-")
    ended = run(tmp_path, "bench", *asked, *TINY, "--set", "models.served.0.context_length=12")
    assert ended.returncode == 1
    assert "requests to engine failed: 5 ContextLengthExceeded" in ended.stderr
    assert "  ContextLengthExceeded: " in ended.stderr
    assert "| 4 ContextLengthExceeded |" in ended.stdout


def test_a_server_that_is_not_there_ends_with_1(tmp_path: Path) -> None:
    ended = run(tmp_path, "bench", "throughput", "--target", "http://127.0.0.1:1", *TINY)
    assert ended.returncode == 1
    assert "cannot connect to 127.0.0.1, port 1" in ended.stderr
    assert ended.stdout == ""
    named = run(tmp_path, "bench", "throughput", "--target", "http://127.0.0.1:1", "--model", "m", *TINY)
    assert named.returncode == 1
    assert "requests to http://127.0.0.1:1 failed: 5 connection" in named.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["throughput", "--target", "ftp://host"],
            "A target is engine, server or an http(s) address, got 'ftp://host'",
        ),
        (["throughput", "--concurrency", "0"], "concurrency must be at least 1, got 0"),
        (["latency", "--rate", "0"], "rate must be greater than 0, got 0.0"),
        (["latency", "--rounds", "0"], "rounds must be at least 1, got 0"),
        (["latency", "--warmup", "-1"], "warmup must be at least 0, got -1"),
        (["latency", "--timeout-s", "0"], "timeout_s must be greater than 0"),
        (["latency", "--slo", "ttft"], "--slo takes ttft=MS, tpot=MS and e2e=MS, got 'ttft'"),
        (["latency", "--slo", "ttft=-1"], "--slo: ttft must be greater than 0, got -1.0"),
        (["latency", "--rate", "inf"], "rate must be a finite number greater than 0, got inf"),
        (["throughput", "--api-key-env", "NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY is not set"),
        (["throughput", "--api-key-env", "PATH"], "--api-key-env is for an address, not for server"),
        (["throughput", "--compare-api-key-env", "PATH"], "--compare-api-key-env is for the target of --compare"),
        (["throughput", "--compare-model", "x"], "--compare-model is for the target of --compare, and there is none"),
        (["throughput", "--extra-body", "[1]"], "--extra-body must be a JSON object, got '[1]'"),
        (["throughput", "--extra-body", "{}", "--compare", "engine"], "--extra-body is for targets over HTTP"),
        (["throughput", "--json", "-", "--markdown", "-"], "cannot both print"),
        (["throughput", "--plot", "-"], "--plot needs the name of a file"),
        (["throughput", "--json", "no/such/place.json"], "--json: there is no directory no/such"),
        (["throughput", "--markdown", "."], "--markdown needs the name of a file, got the directory ."),
        (["throughput", "--sampling", "hot"], "invalid choice: 'hot'"),
        (["latency", "--concurrency", "2"], "unrecognized arguments: --concurrency"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_starts(tmp_path: Path, arguments: list[str], told: str) -> None:
    ended = run(tmp_path, "bench", *arguments)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert ended.stdout == ""


def test_a_key_is_read_from_its_variable_and_told_nowhere(tmp_path: Path) -> None:
    asked = ("throughput", "--target", "http://127.0.0.1:1", "--model", "m", "--api-key-env", "MY_KEY")
    ended = run(tmp_path, "bench", *asked, *TINY, "--json", "figures.json", variables={"MY_KEY": "very-secret"})
    assert ended.returncode == 1
    assert "very-secret" not in ended.stdout + ended.stderr + (tmp_path / "figures.json").read_text()
