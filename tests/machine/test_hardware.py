from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from mlx_serving.machine import hardware

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu sse avx avx2 fma f16c avx512f ht\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes sve bf16\nCPU implementer\t: 0x41\n"


def _write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_this_machine_is_told_of() -> None:
    found = hardware.read()
    assert found.cores == os.cpu_count()
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 0 < found.usable_cores <= found.cores


def test_processors_are_told_by_their_own_files() -> None:
    assert hardware.cpu_model(X86) == "AMD EPYC 9B14"
    assert hardware.cpu_flags(X86) == ("avx", "avx2", "avx512f", "fma", "f16c")
    assert hardware.cpu_model(ARM) is None
    assert hardware.cpu_flags(ARM) == ("asimd", "sve", "bf16")
    assert hardware.cpu_flags("") == ()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux has control groups")
def test_a_container_may_use_less_than_there_is(tmp_path: Path) -> None:
    whole = hardware.usable_cores(tmp_path)
    assert whole == len(os.sched_getaffinity(0))
    _write(tmp_path, "proc/self/cgroup", "1:cpu:/old\n0::/a/b\n")
    _write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    assert hardware.usable_cores(tmp_path) == whole
    _write(tmp_path, "sys/fs/cgroup/a/cpu.max", "50000 100000\n")
    assert hardware.usable_cores(tmp_path) == 0.5


def test_gpus_are_told_by_the_driver(tmp_path: Path) -> None:
    assert hardware.cuda_names(tmp_path) == ()
    gpus = "proc/driver/nvidia/gpus"
    _write(tmp_path, f"{gpus}/0000:01:00.0/information", "Model: \t\t NVIDIA H200\nIRQ:   \t\t 1\n")
    _write(tmp_path, f"{gpus}/0000:02:00.0/information", "IRQ: 2\n")
    assert hardware.cuda_names(tmp_path) == ("NVIDIA H200", "unknown")


def test_pressure_is_the_share_of_the_time_that_somebody_waits() -> None:
    text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=1\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=0\n"
    assert hardware.memory_stall(text) == 12.5
    assert hardware.memory_stall("") is None
