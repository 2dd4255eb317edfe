"""Where a benchmark ran: every report says so."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path


def machine_facts() -> Mapping[str, str]:
    """This machine, and what sends the load. `load average` is that of the minute before: other work makes figures
    worse, and nobody sees it in them."""
    import psutil

    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count() or 1),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load average": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "mlx-serving": version("mlx-serving"),
        "uvloop": version("uvloop"),
    }


def _cpu() -> str:
    if sys.platform == "darwin":
        told = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return told.stdout.strip() or platform.processor()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
