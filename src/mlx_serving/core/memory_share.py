"""How much of its memory for KV caches a worker gets when those before it died for want of memory.

Each such death takes a quarter of what was left, down to a quarter of all: a smaller budget means that requests wait,
a worker that dies again means that all of them do. A worker that lived for an hour has shown that its share is enough,
and its successor tries the next larger one, whatever ended it, unless that was memory again.
"""

from __future__ import annotations

from mlx_serving.core.crash_finding import CrashKind, Finding, diagnose

WHOLE = 1.0
_LEAST = 0.25
_STEP = 0.75
_PROVEN_S = 3600.0

_FOR_MEMORY = frozenset(
    {
        CrashKind.METAL_OUT_OF_MEMORY,
        CrashKind.METAL_RESOURCE_LIMIT,
        CrashKind.WIRED_MEMORY,
        CrashKind.CUDA_OUT_OF_MEMORY,
        CrashKind.OUT_OF_MEMORY,
        CrashKind.KILLED_FOR_MEMORY,
    }
)


def died_for_memory(finding: Finding | None, *, kills_are_counted: bool) -> bool:
    """Where the system does not count whom it kills for memory, an unexplained kill is taken for one."""
    if finding is None:
        return False
    return finding.kind in _FOR_MEMORY or (finding.kind is CrashKind.KILLED and not kills_are_counted)


def tells_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory could not be had."""
    return died_for_memory(diagnose(f"{type(error).__name__}: {error}", 1, None), kills_are_counted=True)


def next_share(share: float, *, for_memory: bool, lived_s: float) -> float:
    """The share of the next worker, after one that had `share` and lived for `lived_s` seconds."""
    if for_memory:
        return max(_LEAST, share * _STEP)
    return min(WHOLE, share / _STEP) if lived_s >= _PROVEN_S else share
