"""Limits and kills as Linux writes them, in trees of the test's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mlx_serving.machine.cgroup import CgroupLimit, memory_groups, memory_kills

MIB = 1 << 20


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def memory_limits(root: Path = Path("/")) -> list[CgroupLimit]:
    return [limit for group in memory_groups(root) if (limit := group.read()) is not None]


UNIFIED = {
    "proc/self/cgroup": "0::/system/worker\n",
    "sys/fs/cgroup/system/worker/memory.max": f"{512 * MIB}\n",
    "sys/fs/cgroup/system/worker/memory.current": f"{200 * MIB}\n",
    "sys/fs/cgroup/system/worker/memory.stat": f"anon 1\ninactive_file {50 * MIB}\n",
    "sys/fs/cgroup/system/worker/memory.events": "low 0\noom 3\noom_kill 2\n",
    "sys/fs/cgroup/system/memory.max": f"{4096 * MIB}\n",
    "sys/fs/cgroup/system/memory.current": f"{300 * MIB}\n",
    "sys/fs/cgroup/system/memory.events": "oom_kill 9\n",
    "proc/vmstat": "nr_free_pages 1\noom_kill 40\n",
}
LEGACY = {
    "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/pod/one\n0::/\n",
    "sys/fs/cgroup/memory/pod/one/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/pod/one/memory.usage_in_bytes": "1000\n",
    "sys/fs/cgroup/memory/pod/one/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
    "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": f"{64 * MIB}\n",
    "sys/fs/cgroup/memory/pod/memory.usage_in_bytes": f"{10 * MIB}\n",
    "sys/fs/cgroup/memory/pod/memory.stat": f"inactive_file 7\ntotal_inactive_file {4 * MIB}\n",
}


def test_every_group_above_ours_limits_us(tmp_path: Path) -> None:
    limits = memory_limits(tree(tmp_path, UNIFIED))
    assert limits == [CgroupLimit(512 * MIB, 150 * MIB), CgroupLimit(4096 * MIB, 300 * MIB)]


def test_version_1_has_other_names_and_a_huge_number_for_no_limit(tmp_path: Path) -> None:
    assert memory_limits(tree(tmp_path, LEGACY)) == [CgroupLimit(64 * MIB, 6 * MIB)]


def test_a_group_without_a_limit_is_left_out(tmp_path: Path) -> None:
    unlimited = {**UNIFIED, "sys/fs/cgroup/system/worker/memory.max": "max\n"}
    assert memory_limits(tree(tmp_path, unlimited)) == [CgroupLimit(4096 * MIB, 300 * MIB)]


@pytest.mark.parametrize(("files", "kills"), [(UNIFIED, 2), (LEGACY, 5), ({"proc/vmstat": "oom_kill 40\n"}, 40)])
def test_kills_are_those_of_our_group_if_it_counts_them_else_the_machine_s(
    tmp_path: Path, files: Mapping[str, str], kills: int
) -> None:
    assert memory_kills(tree(tmp_path, files)) == kills


def test_where_there_is_nothing_nothing_is_found(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == []
    assert memory_kills(tmp_path) is None


def test_a_path_that_is_not_in_our_view_leaves_the_root_s_limit(tmp_path: Path) -> None:
    """In a container the group's path may be that of the machine outside."""
    files = {
        "proc/self/cgroup": "0::/outside/container\n",
        "sys/fs/cgroup/memory.max": f"{256 * MIB}\n",
        "sys/fs/cgroup/memory.current": f"{16 * MIB}\n",
    }
    assert memory_limits(tree(tmp_path, files)) == [CgroupLimit(256 * MIB, 16 * MIB)]


def test_this_machine_can_be_asked() -> None:
    assert all(limit.used >= 0 for limit in memory_limits())
    assert (memory_kills() or 0) >= 0
