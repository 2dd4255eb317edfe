"""Text in the shape that Apple documents for its commands; it was not recorded on a Mac."""

from __future__ import annotations

import json

import pytest

from mlx_serving.machine import macos

SYSCTL = """\
machdep.cpu.brand_string: Apple M3 Max
hw.perflevel0.physicalcpu: 12
hw.perflevel1.physicalcpu: 4
hw.memsize: 68719476736
iogpu.wired_limit_mb: 0
kern.memorystatus_vm_pressure_level: 2
"""
SW_VERS = "ProductName:\t\tmacOS\nProductVersion:\t\t15.1\nBuildVersion:\t\t24B83\n"
DISPLAYS = {
    "SPDisplaysDataType": [
        {
            "_name": "Apple M3 Max",
            "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
            "sppci_cores": "40",
            "sppci_model": "Apple M3 Max",
        }
    ]
}
COOL = "Note: No thermal warning level has been recorded\nNote: No performance warning level has been recorded\n"
HOT = "2024-11-02 10:00:00 +0100\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Available_CPUs \t= 8\n\tCPU_Speed_Limit \t= 62\n"


def test_values_are_found_by_their_names() -> None:
    values = macos.parse_sysctl(SYSCTL)
    assert values["machdep.cpu.brand_string"] == "Apple M3 Max"
    assert values["hw.memsize"] == "68719476736"
    assert macos.parse_sysctl("") == {}
    assert macos.parse_sysctl("no colon here") == {}


def test_the_version_is_found() -> None:
    assert macos.parse_version(SW_VERS) == "15.1"
    assert macos.parse_version("") is None


def test_the_gpu_is_found() -> None:
    assert macos.parse_displays(json.dumps(DISPLAYS)) == (40, "Metal 3")
    assert macos.parse_displays('{"SPDisplaysDataType": [{"_name": "eGPU"}]}') == (None, None)
    assert macos.parse_displays('{"SPDisplaysDataType": [{"sppci_cores": "8"}]}') == (8, None)
    for text in ("", "[]", '{"SPDisplaysDataType": 1}', "{}"):
        assert macos.parse_displays(text) == (None, None)


@pytest.mark.parametrize(("text", "percent"), [(COOL, 100), (HOT, 62), ("", None)])
def test_heat_is_told_by_the_speed_limit(text: str, percent: int | None) -> None:
    assert macos.parse_speed_limit(text) == percent


def test_all_of_it_together(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"sysctl": SYSCTL, "system_profiler": json.dumps(DISPLAYS), "sw_vers": SW_VERS, "pmset": HOT}

    def output(command: list[str]) -> str:
        return said[command[0].rpartition("/")[2]]

    monkeypatch.setattr(macos, "_output", output)
    assert macos.read() == macos.MacFacts(
        chip="Apple M3 Max",
        performance_cores=12,
        efficiency_cores=4,
        memory_bytes=68719476736,
        gpu_cores=40,
        metal="Metal 3",
        version="15.1",
        wired_limit_mb=0,
        memory_pressure="warning",
        speed_limit_percent=62,
    )


def test_without_the_commands_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("subprocess.run", fails)
    assert macos.read() == macos.MacFacts()
