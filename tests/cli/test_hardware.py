from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import psutil
import pytest

from mlx_serving import assembly
from mlx_serving.cli import hardware
from mlx_serving.cli.machine_findings import download_finding, machine_findings
from mlx_serving.config.schema import Config
from mlx_serving.machine.hardware import Hardware
from mlx_serving.machine.macos import MacFacts

from ..command_line import run
from ..tiny_models import make_mamba

GIB = 1 << 30


def test_the_machine_and_what_suits_it_are_told(tmp_path: Path) -> None:
    ended = run(tmp_path, "hardware", "--json")
    assert ended.returncode == 0
    told = json.loads(ended.stdout)
    assert told["machine"]["cores"] == os.cpu_count()
    assert told["machine"]["memory_bytes"] == psutil.virtual_memory().total
    assert 0 < told["machine"]["capacity_bytes"] < told["machine"]["memory_bytes"]
    assert [model["model"] for model in told["models"]] == ["1B", "4B", "8B", "14B", "32B", "70B"]


def test_a_model_is_fitted_in_all_its_forms(tmp_path: Path, tiny_model: Path) -> None:
    told = json.loads(run(tmp_path, "hardware", "--json", "--model", str(tiny_model)).stdout)
    [model] = told["models"]
    assert model["fits"]
    assert model["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert [form["quantization"] for form in model["forms"]][:2] == [None, "8bit-g64"]
    shown = run(tmp_path, "hardware", "--model", str(tiny_model)).stdout
    assert f"apply with: mlx-serving serve --model {tiny_model} --set scheduler.max_num_seqs=" in shown


def test_what_is_shown_can_be_given_to_a_shell(tmp_path: Path, tiny_model: Path) -> None:
    place = shutil.copytree(tiny_model, tmp_path / "my model")
    shown = run(tmp_path, "hardware", "--model", str(place)).stdout
    assert f"mlx-serving serve --model '{place}' --set " in shown


def test_the_caches_of_a_recurrent_model_do_not_grow(tmp_path: Path) -> None:
    shown = run(tmp_path, "hardware", "--model", str(make_mamba(tmp_path / "mamba"))).stdout
    assert "fits; its caches do not grow" in shown
    assert "--set scheduler.max_num_seqs=16 " in shown


def test_a_model_that_does_not_fit_is_a_failure(tmp_path: Path, tiny_model: Path) -> None:
    ended = run(tmp_path, "hardware", "--model", str(tiny_model), "--set", "memory.limit_bytes=10000")
    assert ended.returncode == 1
    assert "does not fit" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--model", "smollm2-136m"), "did you mean"), (("--model", "no/where"), "mlx-serving pull no/where")],
)
def test_a_model_that_is_not_here_is_told(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    ended = run(tmp_path, "hardware", *arguments)
    assert ended.returncode == 1
    assert told in ended.stderr


def test_the_worker_that_is_asked_has_the_device_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: Config) -> None:
        raise RuntimeError(f"{config.workers} workers")

    monkeypatch.setattr(assembly, "build", build)
    parser = argparse.ArgumentParser()
    hardware.add_arguments(parser)
    with pytest.raises(RuntimeError, match="1 workers"):
        hardware.run(parser.parse_args(["--set", "workers=2"]))


def _hardware(**facts: object) -> Hardware:
    plain: dict[str, object] = {
        "system": "Linux 6",
        "architecture": "x86_64",
        "chip": None,
        "cores": 8,
        "usable_cores": 8.0,
        "memory_bytes": 32 * GIB,
        "available_bytes": 16 * GIB,
        "memory_limit_bytes": None,
        "cpu_flags": (),
        "cuda_devices": (),
        "memory_stall_percent": None,
        "mac": None,
    }
    return Hardware(**{**plain, **facts})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("facts", "warned", "fix"),
    [
        ({"available_bytes": GIB // 2}, "memory", "close other programs"),
        ({"usable_cores": 0.5}, "processors", "--cpus"),
        ({"memory_stall_percent": 20.0}, "memory pressure", "memory.limit_bytes"),
        ({"mac": MacFacts(memory_pressure="critical")}, "memory pressure", "close other programs"),
        ({"mac": MacFacts(speed_limit_percent=60)}, "heat", "let air to the machine"),
        ({"mac": MacFacts(wired_limit_mb=32_000)}, "wired limit", "sudo sysctl iogpu.wired_limit_mb=24576"),
    ],
)
def test_what_is_wrong_with_a_machine_comes_with_a_fix(facts: dict[str, object], warned: str, fix: str) -> None:
    [warning] = [check for check in machine_findings(_hardware(**facts)) if check.level != "ok"]
    assert warning.name == warned
    assert fix in (warning.fix or "")


def test_a_sound_machine_has_no_warnings() -> None:
    mac = MacFacts(memory_pressure="normal", speed_limit_percent=100, wired_limit_mb=0)
    checks = list(machine_findings(_hardware(mac=mac, memory_stall_percent=0.0, memory_limit_bytes=8 * GIB)))
    assert {check.level for check in checks} == {"ok"}
    assert [check.name for check in checks] == [
        "memory",
        "container",
        "memory pressure",
        "memory pressure",
        "heat",
        "wired limit",
    ]
    assert "may be raised: sudo sysctl iogpu.wired_limit_mb=24576" in checks[-1].message


def test_a_full_disk_is_told_with_what_frees_it() -> None:
    assert download_finding(Path("/cache"), 100 * GIB).level == "ok"
    low = download_finding(Path("/cache"), GIB)
    assert (low.level, "models rm" in (low.fix or "")) == ("warning", True)
