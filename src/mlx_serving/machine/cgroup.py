"""What Linux says of the memory that this process may use: the limits of its control groups, and whom it killed for
exceeding them. Elsewhere there is nothing to read, and nothing is found.

Both versions of control groups are read where they usually are, under /sys/fs/cgroup. A limit holds for the group that
has it and for all below, so every group from ours up to the root counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_NO_LIMIT = 1 << 60  # version 1 writes a number near 2 ** 63 where there is none


@dataclass(frozen=True, slots=True)
class CgroupLimit:
    """Bytes. `used` by all processes in the group, without the file cache that gives way when memory is needed."""

    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class _Version:
    """The names that a version of control groups has for the same facts."""

    mount: str
    limit: str
    usage: str
    reclaimable: str
    kills: str


_VERSIONS = (
    _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file", "memory.events"),
    _Version(
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
        "memory.oom_control",
    ),
)


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group and its files."""

    limit: Path
    usage: Path
    statistics: Path
    reclaimable: str
    kills: Path

    def read(self) -> CgroupLimit | None:
        """As it is now; None for a group without a limit."""
        limit = _number(self.limit)
        if limit is None or limit >= _NO_LIMIT:
            return None
        usage = _number(self.usage) or 0
        return CgroupLimit(limit, max(0, usage - (_entry(self.statistics, self.reclaimable) or 0)))


def memory_groups(root: Path = _ROOT) -> list[MemoryGroup]:
    """Our group and those above it, the innermost first. Found once: a process hardly ever moves."""
    found: list[MemoryGroup] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version = _VERSIONS[0]
        elif "memory" in controllers.split(","):
            version = _VERSIONS[1]
        else:
            continue
        mount = root / version.mount
        group = mount / path.lstrip("/")
        found += [
            MemoryGroup(
                limit=directory / version.limit,
                usage=directory / version.usage,
                statistics=directory / "memory.stat",
                reclaimable=version.reclaimable,
                kills=directory / version.kills,
            )
            for directory in (group, *(above for above in group.parents if above.is_relative_to(mount)))
        ]
    return found


def memory_kills(root: Path = _ROOT) -> int | None:
    """How many processes were killed for want of memory: in our group if it counts them, else on this machine. None
    where nobody counts."""
    for group in memory_groups(root):
        kills = _entry(group.kills, "oom_kill")
        if kills is not None:
            return kills
    return _entry(root / "proc/vmstat", "oom_kill")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _entry(path: Path, name: str) -> int | None:
    """The number after `name` in a file of such pairs, one a line."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return None
