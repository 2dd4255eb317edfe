from signal import Signals

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.crash_finding import CrashKind, diagnose

METAL = "uncaught exception of type std::runtime_error: [METAL] Command buffer execution failed: "

TEXTS = {
    "-[_MTLCommandBuffer addCompletedHandler:]:1011: failed assertion `Completed handler provided after commit call'": (
        CrashKind.METAL_COMPLETION_HANDLER
    ),
    "failed assertion: addCompletedHandler called on a command buffer that is already committed": (
        CrashKind.METAL_COMPLETION_HANDLER
    ),
    METAL + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)": CrashKind.METAL_OUT_OF_MEMORY,
    METAL + "Insufficient Memory": CrashKind.METAL_OUT_OF_MEMORY,
    METAL + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)": (
        CrashKind.METAL_INTERACTIVITY
    ),
    METAL + "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)": CrashKind.METAL_HANG,
    METAL + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)": CrashKind.METAL_HANG,
    METAL
    + "Innocent Victim (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)": CrashKind.METAL_INNOCENT_VICTIM,
    METAL + "Discarded (kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)": CrashKind.METAL_ERROR,
    "RuntimeError: [metal::malloc] Resource limit (499000) exceeded.": CrashKind.METAL_RESOURCE_LIMIT,
    "[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum allowed buffer size": (
        CrashKind.METAL_BUFFER_TOO_LARGE
    ),
    "RuntimeError: There is no Stream(gpu, 1) in current thread.": CrashKind.STREAM_OF_OTHER_THREAD,
    "panic: IOGPUMemory completeMemory() prepare count underflow": CrashKind.WIRED_MEMORY,
    "RuntimeError: cudaMallocAsync(&data, size) failed: out of memory": CrashKind.CUDA_OUT_OF_MEMORY,
    "Traceback (most recent call last):\n  File ...\nMemoryError": CrashKind.OUT_OF_MEMORY,
    "terminate called after throwing an instance of 'std::bad_alloc'": CrashKind.OUT_OF_MEMORY,
    "RuntimeError: [malloc] Unable to allocate 8589934592 bytes.": CrashKind.OUT_OF_MEMORY,
    "ModuleNotFoundError: No module named 'mlx'": CrashKind.MLX_MISSING,
    "ModuleNotFoundError: No module named 'mlx_lm'": CrashKind.MLX_MISSING,
    "ImportError: libblas.so.3: cannot open shared object file: No such file or directory": CrashKind.LIBRARY_MISSING,
    "OSError: /x/libopenblas.so: undefined symbol: sgemm_": CrashKind.LIBRARY_MISSING,
    "python: error while loading shared libraries: libmlx.so: cannot open": CrashKind.LIBRARY_MISSING,
    "python: symbol lookup error: libmlx.so: undefined symbol: x": CrashKind.LIBRARY_MISSING,
    "dyld[1]: Library not loaded: @rpath/libmlx.dylib": CrashKind.LIBRARY_MISSING,
    "OSError: [Errno 28] No space left on device: '/cache/model'": CrashKind.DISK_FULL,
}


@pytest.mark.parametrize(("text", "kind"), TEXTS.items(), ids=lambda value: str(value)[-48:])
def test_a_known_text_is_recognised_in_the_middle_of_a_log(text: str, kind: CrashKind) -> None:
    finding = diagnose(f"loading weights\n{text}\nAbort trap: 6\n", None, Signals.SIGABRT)
    assert finding is not None
    assert finding.kind is kind


def test_the_explanation_carries_what_the_text_named() -> None:
    cases = {
        "kIOGPUCommandBufferCallbackErrorSubmissionsIgnored": "kIOGPUCommandBufferCallbackErrorSubmissionsIgnored",
        "ModuleNotFoundError: No module named 'mlx.core'": "mlx.core",
        "ImportError: libblas.so.3: cannot open shared object file": "libblas.so.3",
        "[metal::malloc] Attempting to allocate 1234 bytes": "1234",
    }
    for text, named in cases.items():
        finding = diagnose(text, 1, None)
        assert finding is not None
        assert named in finding.explanation


def test_braces_in_the_log_are_only_text() -> None:
    finding = diagnose("ImportError: {0}{x}.so: undefined symbol: {y}", 1, None)
    assert finding is not None
    assert "{0}{x}.so" in finding.explanation


@pytest.mark.parametrize(
    ("signal", "kind"),
    [
        (Signals.SIGKILL, CrashKind.KILLED),
        (Signals.SIGSEGV, CrashKind.SEGMENTATION_FAULT),
        (Signals.SIGABRT, CrashKind.ABORTED),
        (Signals.SIGBUS, CrashKind.BUS_ERROR),
        (Signals.SIGILL, CrashKind.ILLEGAL_INSTRUCTION),
    ],
)
def test_without_a_known_text_the_signal_speaks(signal: Signals, kind: CrashKind) -> None:
    by_signal = diagnose("loading weights\n", None, int(signal))
    by_status_of_a_shell = diagnose("", 128 + signal, None)
    assert by_signal is not None
    assert by_signal.kind is kind
    assert by_signal == by_status_of_a_shell


def test_a_kill_that_the_system_counted_was_for_memory_whatever_the_log_says() -> None:
    finding = diagnose("There is no Stream(gpu, 0)", None, Signals.SIGKILL, killed_for_memory=True)
    assert finding is not None
    assert finding.kind is CrashKind.KILLED_FOR_MEMORY
    other = diagnose("", None, Signals.SIGSEGV, killed_for_memory=True)
    assert other is not None
    assert other.kind is CrashKind.SEGMENTATION_FAULT


def test_a_text_says_more_than_a_signal() -> None:
    finding = diagnose("There is no Stream(gpu, 0) in current thread", None, Signals.SIGABRT)
    assert finding is not None
    assert finding.kind is CrashKind.STREAM_OF_OTHER_THREAD


def test_the_particular_text_wins_over_the_general_one() -> None:
    finding = diagnose("kIOGPUCommandBufferCallbackErrorOutOfMemory ... MemoryError", None, Signals.SIGABRT)
    assert finding is not None
    assert finding.kind is CrashKind.METAL_OUT_OF_MEMORY


def test_a_library_that_could_not_be_preloaded_is_no_finding() -> None:
    reason = "cannot be preloaded (cannot open shared object file): ignored."
    note = f"ERROR: ld.so: object 'libopenblas.so' from LD_PRELOAD {reason}"
    assert diagnose(note, 1, None) is None


@pytest.mark.parametrize(("code", "signal"), [(1, None), (None, None), (None, int(Signals.SIGHUP)), (255, None)])
def test_the_unknown_stays_unknown(code: int | None, signal: int | None) -> None:
    assert diagnose("Traceback: KeyError: 'x'", code, signal) is None


def test_a_clean_exit_is_no_crash_whatever_the_log_says() -> None:
    assert diagnose("MemoryError", 0, None) is None


@given(text=st.text(), code=st.none() | st.integers(-300, 300), signal=st.none() | st.integers(0, 70))
def test_any_log_is_read_without_failing(text: str, code: int | None, signal: int | None) -> None:
    finding = diagnose(text, code, signal)
    assert finding is None or (finding.explanation and finding.advice)
