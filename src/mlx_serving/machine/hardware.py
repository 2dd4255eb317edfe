"""What this machine is made of, as far as it can be told without MLX: the worker knows the rest."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlx_serving.machine import macos
from mlx_serving.machine.cgroup import memory_groups
from mlx_serving.machine.macos import MacFacts

_ROOT = Path("/")
# Those that MLX's CPU code and the BLAS libraries choose their kernels by.
_FLAGS = ("avx", "avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "fma", "f16c", "asimd", "sve", "bf16")


@dataclass(frozen=True, slots=True)
class Hardware:
    """`usable_cores` may be fewer than `cores`, in a container for one. `memory_limit_bytes` is a cgroup's, None where
    there is none. `cuda_devices` are the names of the GPUs that NVIDIA's driver knows. `memory_stall_percent` is how
    much of the last ten seconds some process waited for memory, None where the system does not tell. `mac` is None
    elsewhere."""

    system: str
    architecture: str
    chip: str | None
    cores: int
    usable_cores: float
    memory_bytes: int
    available_bytes: int
    memory_limit_bytes: int | None
    cpu_flags: tuple[str, ...]
    cuda_devices: tuple[str, ...]
    memory_stall_percent: float | None
    mac: MacFacts | None


def read(root: Path = _ROOT) -> Hardware:
    """Ask this machine. `root` stands in for the root of its files."""
    memory = psutil.virtual_memory()
    mac = macos.read() if sys.platform == "darwin" else None
    cpuinfo = _read(root / "proc/cpuinfo")
    limits = [found.limit for group in memory_groups(root) if (found := group.read()) is not None]
    system = f"macOS {mac.version or ''}".strip() if mac is not None else f"{platform.system()} {platform.release()}"
    return Hardware(
        system=system,
        architecture=platform.machine(),
        chip=mac.chip if mac is not None else cpu_model(cpuinfo),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(root),
        memory_bytes=memory.total,
        available_bytes=memory.available,
        memory_limit_bytes=min(limits, default=None),
        cpu_flags=cpu_flags(cpuinfo),
        cuda_devices=cuda_names(root),
        memory_stall_percent=memory_stall(_read(root / "proc/pressure/memory")),
        mac=mac,
    )


def cpu_model(cpuinfo: str) -> str | None:
    """Of the text of /proc/cpuinfo; processors of ARM do not tell."""
    return _field(cpuinfo, "model name")


def cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """Those that matter, of the text of /proc/cpuinfo: `flags` of x86, `Features` of ARM."""
    present = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return tuple(flag for flag in _FLAGS if flag in present)


def usable_cores(root: Path = _ROOT) -> float:
    """The processors that this process may use: its affinity, and what its control groups grant of them."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = [float(affinity)]
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, path = line.split(":", 2)
        if number != "0":
            continue
        mount = root / "sys/fs/cgroup"
        group = mount / path.lstrip("/")
        for directory in (group, *(above for above in group.parents if above.is_relative_to(mount))):
            quota, _, period = _read(directory / "cpu.max").strip().partition(" ")
            if quota.isdecimal() and period.isdecimal():
                granted.append(int(quota) / int(period))
    return min(granted)


def cuda_names(root: Path = _ROOT) -> tuple[str, ...]:
    """The models of the GPUs in what NVIDIA's driver tells in /proc."""
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    return tuple(_field(_read(file), "Model") or "unknown" for file in files)


def memory_stall(pressure: str) -> float | None:
    """`avg10` of the first line of /proc/pressure/memory, in percent."""
    for word in pressure.partition("\n")[0].split():
        if word.startswith("avg10="):
            return float(word.removeprefix("avg10="))
    return None


def _field(text: str, name: str) -> str | None:
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
