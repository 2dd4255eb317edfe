"""What macOS's own commands say of a Mac.

The parsers were written from the documentation of these commands and from their published output; no Mac was at hand.
What they do not find is None, never an error.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

_LIMIT_S = 10.0
_NAMES = (
    "machdep.cpu.brand_string",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "hw.memsize",
    "iogpu.wired_limit_mb",
    "kern.memorystatus_vm_pressure_level",
)
_PRESSURES = {1: "normal", 2: "warning", 4: "critical"}


@dataclass(frozen=True, slots=True)
class MacFacts:
    """A `wired_limit_mb` of 0 leaves the limit to the system. `memory_pressure` is `normal`, `warning` or `critical`;
    `speed_limit_percent` is below 100 while the machine is too hot."""

    chip: str | None = None
    performance_cores: int | None = None
    efficiency_cores: int | None = None
    memory_bytes: int | None = None
    gpu_cores: int | None = None
    metal: str | None = None
    version: str | None = None
    wired_limit_mb: int | None = None
    memory_pressure: str | None = None
    speed_limit_percent: int | None = None


def read() -> MacFacts:
    """Ask this Mac. Takes up to a second or two, for the list of its displays."""
    values = parse_sysctl(_output(["/usr/sbin/sysctl", *_NAMES]))
    gpu_cores, metal = parse_displays(_output(["/usr/sbin/system_profiler", "SPDisplaysDataType", "-json"]))
    return MacFacts(
        chip=values.get("machdep.cpu.brand_string"),
        performance_cores=_whole(values.get("hw.perflevel0.physicalcpu")),
        efficiency_cores=_whole(values.get("hw.perflevel1.physicalcpu")),
        memory_bytes=_whole(values.get("hw.memsize")),
        gpu_cores=gpu_cores,
        metal=metal,
        version=parse_version(_output(["/usr/bin/sw_vers"])),
        wired_limit_mb=_whole(values.get("iogpu.wired_limit_mb")),
        memory_pressure=_PRESSURES.get(_whole(values.get("kern.memorystatus_vm_pressure_level")) or 0),
        speed_limit_percent=parse_speed_limit(_output(["/usr/bin/pmset", "-g", "therm"])),
    )


def parse_sysctl(text: str) -> Mapping[str, str]:
    """`name: value` a line. Names that a machine does not have are missing: sysctl complains of them on stderr."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def parse_version(text: str) -> str | None:
    """The version in what `sw_vers` prints: `ProductVersion:` and some white space before it."""
    match = re.search(r"^ProductVersion:\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else None


def parse_displays(text: str) -> tuple[int | None, str | None]:
    """The GPU's cores and the Metal that it supports (`Metal 3`), of what `system_profiler SPDisplaysDataType -json`
    prints."""
    try:
        entries = msgspec.json.decode(text, type=dict[str, list[dict[str, Any]]]).get("SPDisplaysDataType", [])
    except msgspec.MsgspecError:
        return None, None
    for entry in entries:
        cores = _whole(entry.get("sppci_cores"))
        if cores is not None:
            family = entry.get("spdisplays_mtlgpufamilysupport")
            match = re.search(r"metal(\d+)$", family) if isinstance(family, str) else None
            return cores, f"Metal {match[1]}" if match else None
    return None, None


def parse_speed_limit(text: str) -> int | None:
    """`CPU_Speed_Limit = 100` in what `pmset -g therm` prints once there was a warning; 100 before that."""
    match = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text)
    if match:
        return int(match[1])
    return 100 if "No thermal warning level" in text else None


def _whole(value: object) -> int | None:
    text = str(cast(object, value)).strip() if isinstance(value, str | int) else ""
    return int(text) if text.isdecimal() else None


def _output(command: Sequence[str]) -> str:
    """What a command prints; nothing if it cannot be run, fails or hangs."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout
