from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.bench import plot
from mlx_serving.bench.experiment import Measured, Plan
from mlx_serving.bench.figures import Objectives
from mlx_serving.bench.machine_facts import machine_facts
from mlx_serving.bench.markdown import as_markdown
from mlx_serving.bench.records import Answer, Record
from mlx_serving.bench.report import Report, as_json, report_of
from mlx_serving.bench.table import HEADER, comparison_rows, draft_lines, objectives_text, result_rows
from mlx_serving.bench.target import TargetFacts
from mlx_serving.bench.workload import Closed, Open, Workload
from mlx_serving.errors import InvalidRequest

from .scripted import answered, failed

PNG = b"\x89PNG\r\n\x1a\n"
NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
FAST = [answered(0.0, [0.1, 0.2, 0.3]), answered(0.0, [0.1, 0.2, 0.5])]
SLOW = [answered(0.0, [0.2, 0.4, 1.0]), failed(0.0, "timeout", 1.0)]
ONE = TargetFacts("engine", "tiny", {"device": "CPU", "BLAS": "OpenBLAS"})
OTHER = TargetFacts("http://127.0.0.1:8080/v1", "tiny|too")


@pytest.fixture
def compared() -> Report:
    """Two targets under two loads, two rounds each; some requests to the second one failed."""
    plan = Plan(Workload(requests=2), (Closed(1), Closed(8)), rounds=2)
    per_load = [[FAST, FAST], [SLOW, SLOW]]
    measured = Measured([FAST[0], failed(0.0, "connection", 0.1)], [per_load, per_load], exact_prompts=True)
    return report_of("throughput", {"cpu": "a cpu", "cores": "2"}, [ONE, OTHER], plan, measured)


@pytest.fixture
def alone() -> Report:
    plan = Plan(Workload(), (Open(2.0),), warmup=0, objectives=Objectives(None, None, None))
    return report_of("latency", {"cpu": "a cpu"}, [ONE], plan, Measured([FAST[0]], [[[FAST]]], exact_prompts=False))


def test_failures_are_counted_over_all_rounds_by_target_and_code(compared: Report, alone: Report) -> None:
    assert compared.failures() == {OTHER.name: {"connection": 1, "timeout": 4}}
    assert compared.failure_examples() == {"connection": "it was connection", "timeout": "it was timeout"}
    assert alone.failures() == alone.failure_examples() == {}


def test_json_has_every_figure_with_its_unit_in_its_name(compared: Report) -> None:
    document = json.loads(json.dumps(as_json(compared)))
    assert document["benchmark"] == "throughput"
    assert document["machine"] == {"cpu": "a cpu", "cores": "2"}
    assert document["state"] == "warm (8 requests before, not counted)"
    assert document["workload"]["endpoint"] == "completions"
    assert [target["first_request"] for target in document["targets"]] == [
        {"ttft_s": 0.1, "e2e_s": 0.3, "prompt_tokens": 10, "output_tokens": 3},
        {"failed": "connection", "message": "it was connection"},
    ]
    result = document["results"][0]
    assert (result["target"], result["load"]) == ("engine", {"kind": "closed loop", "concurrency": 1})
    assert result["output_tokens_per_s"] == pytest.approx(12.0)
    assert result["ttft_s"] == {
        "count": 4, "mean": 0.1, "minimum": 0.1, "p50": 0.1, "p90": 0.1, "p95": 0.1, "p99": 0.1, "maximum": 0.1,
    }  # fmt: skip
    assert [one["answered"] for one in result["rounds"]] == [2, 2]
    assert len(document["results"]) == 4
    [first, _] = document["comparisons"]
    assert first["ratio_of"] == ["engine", OTHER.name]
    assert first["ratios"]["ttft_p50"] == {"median": 0.5, "rounds": [0.5, 0.5]}
    assert document["failures"] == {OTHER.name: {"connection": 1, "timeout": 4}}


def test_open_load_is_told_as_such(alone: Report) -> None:
    document = as_json(alone)
    assert document["comparisons"] == []
    assert document["state"] == "cold (nothing warmed it up)"
    assert "about as many" in str(document["prompts"])
    [result] = json.loads(json.dumps(document))["results"]
    assert result["load"] == {"kind": "open loop, Poisson arrivals", "requests_per_s": 2.0}


def test_rows_have_a_cell_for_every_column(compared: Report) -> None:
    rows = list(result_rows(compared))
    assert {len(row) for row in rows} == {len(HEADER)}
    assert rows[0][:4] == ("engine", "1 concurrent", "12.0", "4.00")
    assert rows[0][5] == "100 / 100 / 100 / 100"
    assert rows[1][-1] == "2 timeout"


def test_what_could_not_be_measured_is_a_dash() -> None:
    plan = Plan(Workload(), (Closed(1),))
    nothing = [failed(0.0, "connection", 0.1)]
    measured = Measured(nothing * 2, [[[nothing], [nothing]]], exact_prompts=False)
    report = report_of("throughput", {}, [ONE, OTHER], plan, measured)
    row = next(result_rows(report))
    assert row[5:9] == ("-", "-", "-", "-")
    assert ("TTFT p50", "-") in list(comparison_rows(report))
    assert "failed: connection" in as_markdown(report, NOW)


def test_markdown_has_the_labels_the_figures_and_the_ratios(compared: Report) -> None:
    text = as_markdown(compared, NOW)
    assert text.startswith("# mlx-serving bench throughput\n")
    for line in (
        "| date | 2026-11-21 08:30 UTC |",
        "| load | 1 concurrent; 8 concurrent |",
        "| state | warm (8 requests before, not counted) |",
        "| rounds | 2 of 2 requests, the targets in turns |",
        "| objectives | TTFT at most 2000 ms and TPOT at most 200 ms |",
        "| cpu | a cpu |",
        "| engine | tiny | device CPU, BLAS OpenBLAS | 100 ms, 300 ms |",
        f"| {OTHER.name} | tiny\\|too | not known | failed: connection |",
        f"## engine / {OTHER.name}",
        "| TTFT p50 | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) |",
    ):
        assert line in text.splitlines(), line


def test_markdown_of_one_target_has_no_ratios(alone: Report) -> None:
    text = as_markdown(alone)
    assert "##  /" not in text
    assert text.count("## ") == 2
    assert "| objectives | none: every answer is good |" in text


def test_drafts_are_told_where_there_were_any(compared: Report, alone: Report) -> None:
    assert list(draft_lines(compared)) == list(draft_lines(alone)) == []
    drafted = [Record(0.0, 0.0, Answer((0.1,), 0.3, 4, drafted_tokens=count, accepted_tokens=3)) for count in (3, 9)]
    plan = Plan(Workload(), (Closed(8),), rounds=2)
    measured = Measured([FAST[0], drafted[0]], [[[FAST, FAST], [drafted, drafted]]], exact_prompts=True)
    report = report_of("throughput", {}, [ONE, OTHER], plan, measured)
    told = f"{OTHER.name} at 8 concurrent: 12 of 24 drafted tokens were right (50%)"
    assert list(draft_lines(report)) == [told]
    assert f"- {told}" in as_markdown(report, NOW).splitlines()
    results: Any = as_json(report)["results"]
    assert [(one["drafted_tokens"], one["accepted_tokens"]) for one in results] == [(0, 0), (24, 12)]


def test_objectives_are_told_in_milliseconds() -> None:
    assert (
        objectives_text(Objectives(ttft_s=None, tpot_s=0.05, e2e_s=3)) == "TPOT at most 50 ms and E2E at most 3000 ms"
    )


def test_pictures_of_one_load_and_of_several(compared: Report, alone: Report, tmp_path: Path) -> None:
    for name, report in {"several": compared, "one": alone}.items():
        plot.write_plot(report, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_a_picture_of_nothing_is_empty(tmp_path: Path, alone: Report, compared: Report) -> None:
    nothing = [failed(0.0, "timeout", 1.0)]
    for report, loads in ((alone, 1), (compared, 2)):
        records = [[[nothing]]] * loads
        plan = replace(report.plan, rounds=1)
        empty = report_of(report.kind, {}, [ONE], plan, Measured(nothing, records, exact_prompts=False))
        plot.write_plot(empty, tmp_path / "picture")
        assert (tmp_path / "picture").read_bytes().startswith(PNG)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_name: str) -> None:
        return None

    monkeypatch.setattr(plot, "find_spec", nothing)
    with pytest.raises(InvalidRequest, match=r"pip install 'mlx-serving\[bench\]'"):
        plot.require_matplotlib()


def test_the_machine_is_told_with_what_the_figures_depend_on() -> None:
    facts = machine_facts()
    assert {"cpu", "cores", "memory", "system", "load average", "python", "mlx-serving"} <= facts.keys()
    assert all(facts.values())
