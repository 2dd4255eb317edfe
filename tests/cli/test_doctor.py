from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from mlx_serving.cli.machine_findings import port_finding

from ..command_line import run


def test_doctor_finds_a_working_installation_and_names_the_blas_library(tmp_path: Path) -> None:
    ended = run(tmp_path, "doctor", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    report = json.loads(ended.stdout)
    assert report["ok"] is True
    assert "Device(" not in ended.stdout
    assert set(report["versions"]) == {"mlx_serving", "mlx", "mlx_lm"}
    if sys.platform == "linux":
        assert Path(report["blas"]["library"]).is_file()
    checked = {check["name"]: check["level"] for check in report["checks"]}
    assert {"python", "memory", "cache", "config", "port", "worker", "device", "blas"} <= set(checked)
    assert checked["worker"] == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a BLAS to preload")
def test_doctor_warns_of_the_slow_blas_and_of_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(tmp_path, "doctor", "--set", "worker.blas=none", "--set", f"server.port={port}")
    assert ended.returncode == 0
    warnings = [line for line in ended.stdout.splitlines() if line.startswith("! ")]
    assert any(line.startswith("! blas: ") for line in warnings)
    assert any(line.startswith("! port: ") and str(port) in line for line in warnings)
    assert ended.stdout.count("    fix: ") >= len(warnings)


def test_doctor_names_the_damaged_file_of_a_model(tmp_path: Path, tiny_model: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    ended = run(tmp_path, "doctor", "--set", f"models.default={broken}")
    assert ended.returncode == 1
    assert "✗ model broken: model.safetensors is damaged: it is cut off" in ended.stdout
    assert f"fix: copy what is named to {broken} again" in ended.stdout


@pytest.mark.parametrize(
    ("host", "told", "fix"),
    [
        ("192.0.2.1", "192.0.2.1:1234 cannot be listened on: Cannot assign requested address", "server.host"),
        ("nowhere.invalid", "nowhere.invalid is no address", "server.host"),
    ],
)
def test_the_address_is_to_be_mended_where_it_is_not_the_port(host: str, told: str, fix: str) -> None:
    check = port_finding(host, 1234)
    assert check.level == "warning"
    assert told in check.message
    assert fix in (check.fix or "")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_addresses_of_either_kind_can_be_free_or_taken() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        check = port_finding("::1", port)
        assert (check.level, f"[::1]:{port} cannot be listened on: Address" in check.message) == ("warning", True)
        assert "server.port" in (check.fix or "")
    assert port_finding("::1", port).message == f"[::1]:{port} is free"


def test_doctor_tells_why_the_worker_does_not_start(tmp_path: Path) -> None:
    arguments = ("--set", "worker.python=/no/such/python", "--set", "worker.max_restarts=0")
    ended = run(tmp_path, "doctor", *arguments)
    assert ended.returncode == 1
    assert "✗ worker: " in ended.stdout
    assert "/no/such/python" in ended.stdout
    assert "fix: set worker.python to an interpreter in which mlx-serving is installed" in ended.stdout


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("worker.blas=/no/such.so", "✗ worker: worker.blas must be"),
        ("models.alias_file=broken.json", "✗ worker: models.alias_file: broken.json cannot be read"),
    ],
)
def test_doctor_finds_what_keeps_the_server_from_starting(tmp_path: Path, setting: str, told: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    ended = run(tmp_path, "doctor", "--set", setting)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert told in ended.stdout
    assert "fix: mend the setting that is named" in ended.stdout


def test_doctor_warns_of_a_folder_that_prefixes_cannot_be_kept_in(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    for name, mark in (("kept", "✓"), ("taken", "!")):
        ended = run(tmp_path, "doctor", "--set", f"prefix_cache.disk.path={name}")
        assert ended.returncode == 0
        assert f"{mark} prefix cache: " in ended.stdout
        assert str(tmp_path / name) in ended.stdout
    assert "fix: set prefix_cache.disk.path to a folder that can be written to" in ended.stdout
