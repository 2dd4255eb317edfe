"""What a crash of the worker means, read from the end of its stderr and the way it exited.

Texts come before signals, because they know more: an abort is how the C++ runtime ends after it has said why. The
table is ordered from the particular to the general; its first match counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from signal import Signals


class CrashKind(StrEnum):
    METAL_COMPLETION_HANDLER = "metal completion handler"
    METAL_OUT_OF_MEMORY = "metal out of memory"
    METAL_INTERACTIVITY = "metal impacting interactivity"
    METAL_HANG = "metal hang"
    METAL_INNOCENT_VICTIM = "metal innocent victim"
    METAL_ERROR = "metal error"
    METAL_RESOURCE_LIMIT = "metal resource limit"
    METAL_BUFFER_TOO_LARGE = "metal buffer too large"
    STREAM_OF_OTHER_THREAD = "stream of another thread"
    WIRED_MEMORY = "wired memory"
    CUDA_OUT_OF_MEMORY = "cuda out of memory"
    OUT_OF_MEMORY = "out of memory"
    KILLED_FOR_MEMORY = "killed for memory"
    MLX_MISSING = "mlx missing"
    LIBRARY_MISSING = "library missing"
    DISK_FULL = "disk full"
    KILLED = "killed"
    SEGMENTATION_FAULT = "segmentation fault"
    ABORTED = "aborted"
    BUS_ERROR = "bus error"
    ILLEGAL_INSTRUCTION = "illegal instruction"


@dataclass(frozen=True, slots=True)
class Finding:
    """`explanation` says what happened, `advice` what to do about it; both are sentences for the operator."""

    kind: CrashKind
    explanation: str
    advice: str


_LESS_MEMORY = "Use a smaller or more quantised model, a shorter context, or fewer sequences at once."


@dataclass(frozen=True, slots=True)
class _Sign:
    """A text that tells of a crash. The pattern's named groups fill the places of the explanation."""

    pattern: re.Pattern[str]
    finding: Finding


def _sign(pattern: str, kind: CrashKind, explanation: str, advice: str) -> _Sign:
    return _Sign(re.compile(pattern, re.IGNORECASE), Finding(kind, explanation, advice))


_SIGNS = (
    _sign(
        r"completed handler provided after commit call|addCompletedHandler\b.*\balready committed",
        CrashKind.METAL_COMPLETION_HANDLER,
        "A completion handler was added to a Metal command buffer that was already committed: two threads used the GPU "
        "at once.",
        "Upgrade MLX; if it comes back, report it with this log.",
    ),
    _sign(
        r"kIOGPUCommandBufferCallbackErrorOutOfMemory|insufficient memory",
        CrashKind.METAL_OUT_OF_MEMORY,
        "The GPU ran out of memory while it carried out a command buffer.",
        f"{_LESS_MEMORY} Close other programs that use the GPU.",
    ),
    _sign(
        r"kIOGPUCommandBufferCallbackErrorImpactingInteractivity|impacting interactivity",
        CrashKind.METAL_INTERACTIVITY,
        "macOS stopped the GPU's work because one piece of it took so long that the screen stood still.",
        "Lower prefill_step_size, above all for long prompts.",
    ),
    _sign(
        r"kIOGPUCommandBufferCallbackError(?:Hang|Timeout)|caused GPU (?:hang|timeout) error",
        CrashKind.METAL_HANG,
        "The GPU did not finish a command buffer in time and was reset.",
        "Lower prefill_step_size; if it comes back with short prompts, upgrade MLX and macOS.",
    ),
    _sign(
        r"kIOGPUCommandBufferCallbackErrorInnocentVictim|innocent victim",
        CrashKind.METAL_INNOCENT_VICTIM,
        "The GPU was reset because of another program's error, and this worker's work was lost with it.",
        "Nothing is wrong here; look for another program that uses the GPU if it comes back.",
    ),
    _sign(
        r"(?P<name>kIOGPUCommandBufferCallbackError\w*)",
        CrashKind.METAL_ERROR,
        "The GPU refused or broke off a command buffer ({name}).",
        "Upgrade MLX and macOS; if it comes back, report it with this log.",
    ),
    _sign(
        r"\[metal::malloc\] resource limit",
        CrashKind.METAL_RESOURCE_LIMIT,
        "The worker held more GPU buffers than Metal allows.",
        "Limit MLX's buffer cache, and use fewer sequences at once or shorter contexts.",
    ),
    _sign(
        r"\[metal::malloc\] attempting to allocate (?P<bytes>\d+) bytes",
        CrashKind.METAL_BUFFER_TOO_LARGE,
        "One array of {bytes} bytes is larger than the largest buffer this GPU allows.",
        "Use a shorter context or a lower prefill_step_size.",
    ),
    _sign(
        r"there is no stream\b",
        CrashKind.STREAM_OF_OTHER_THREAD,
        "An MLX array was evaluated on another thread than the one that made it.",
        "Report it with this log: only one thread of the worker may use MLX.",
    ),
    _sign(
        r"prepare count underflow",
        CrashKind.WIRED_MEMORY,
        "The GPU driver lost count of wired memory, which happens under memory pressure and can take the machine down.",
        f"{_LESS_MEMORY} Leave more memory to the system.",
    ),
    _sign(
        r"cuda[^\n]*out of memory|cudaErrorMemoryAllocation",
        CrashKind.CUDA_OUT_OF_MEMORY,
        "The CUDA device ran out of memory.",
        f"{_LESS_MEMORY} See which other processes use the device.",
    ),
    _sign(
        r"\bMemoryError\b|std::bad_alloc|\[malloc(?:_or_wait)?\] unable to allocate",
        CrashKind.OUT_OF_MEMORY,
        "The worker could not get the memory it asked for.",
        _LESS_MEMORY,
    ),
    _sign(
        r"ModuleNotFoundError: No module named '(?P<name>mlx[\w.]*)'",
        CrashKind.MLX_MISSING,
        "The worker's Python has no {name}.",
        "Install it into the environment that runs mlx-serving: mlx on macOS, mlx[cpu] or mlx[cuda13] on Linux.",
    ),
    _sign(
        # The loader's note about a library it could not preload is no error: the program goes on without it.
        r"(?:error while loading shared libraries: |symbol lookup error: |library not loaded: "
        r"|(?:ImportError|OSError): (?=[^\n]*(?:cannot open shared object file|undefined symbol|GLIBC)))"
        r"(?P<what>[^\n]+)",
        CrashKind.LIBRARY_MISSING,
        "A shared library could not be loaded: {what}",
        "Reinstall the packages that carry it (mlx and its BLAS) for this system; `mlx-serving doctor` says what is in "
        "use.",
    ),
    _sign(
        r"no space left on device",
        CrashKind.DISK_FULL,
        "A file could not be written because the disk is full.",
        "Free some space, or move the model cache to a larger disk.",
    ),
)

_SIGNALS: dict[int, Finding] = {
    Signals.SIGKILL: Finding(
        CrashKind.KILLED,
        "The worker was killed from outside and had no time to say anything: probably by the system, for memory.",
        f"{_LESS_MEMORY} The system's log tells who killed it.",
    ),
    Signals.SIGSEGV: Finding(
        CrashKind.SEGMENTATION_FAULT,
        "Native code in the worker touched memory that is not its own.",
        "Upgrade MLX; if it comes back with the same request or model, report it with this log.",
    ),
    Signals.SIGABRT: Finding(
        CrashKind.ABORTED,
        "Native code in the worker gave up after an error that nothing could catch.",
        "The last lines of the log say why; report it with them if it comes back.",
    ),
    Signals.SIGBUS: Finding(
        CrashKind.BUS_ERROR,
        "A part of a mapped file could not be read: a model file was cut short while in use, or its disk failed.",
        "Check that the model's files are whole and that nothing replaces them while they are served.",
    ),
    Signals.SIGILL: Finding(
        CrashKind.ILLEGAL_INSTRUCTION,
        "The processor lacks an instruction that MLX or its BLAS was built with.",
        "Use builds of both that were made for this processor.",
    ),
}


_KILLED_FOR_MEMORY = Finding(
    CrashKind.KILLED_FOR_MEMORY,
    "The system killed the worker because memory ran out.",
    f"{_LESS_MEMORY} Raise the limit that it runs under, or lower memory.share or memory.limit_bytes.",
)


def diagnose(
    stderr_tail: str, exit_code: int | None, signal: int | None, *, killed_for_memory: bool = False
) -> Finding | None:
    """What is known about a crash, or None.

    `signal` is the number of the signal that ended the process, else `exit_code` is its status; a status over 128 is
    a shell's word for a signal. Status 0 is no crash. `killed_for_memory`: the system counted such a kill meanwhile.
    Do not ask about a worker that was killed on purpose.
    """
    if signal is None and exit_code == 0:
        return None
    if killed_for_memory and signal == Signals.SIGKILL:
        return _KILLED_FOR_MEMORY
    for sign in _SIGNS:
        match = sign.pattern.search(stderr_tail)
        if match is not None:
            return replace(sign.finding, explanation=sign.finding.explanation.format(**match.groupdict()))
    if signal is None and exit_code is not None and exit_code > 128:
        signal = exit_code - 128
    return None if signal is None else _SIGNALS.get(signal)
