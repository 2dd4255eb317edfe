"""What `doctor` finds out about the machine, and how to mend it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mlx_serving.cli.tables import bytes_text
from mlx_serving.core.recommendations import wired_limit_mb

if TYPE_CHECKING:
    from mlx_serving.machine.hardware import Hardware
    from mlx_serving.machine.macos import MacFacts

Level: TypeAlias = Literal["ok", "warning", "error"]
LOW_DISK_BYTES = 5 << 30
_LOW_MEMORY_BYTES = 1 << 30
_STALLED_PERCENT = 10.0
_FULL_SPEED = 100
_OTHER_HOST = "set server.host (--host) to an address of this machine; 127.0.0.1 is only for itself, 0.0.0.0 all"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` says what to do about it."""

    name: str
    level: Level
    message: str
    fix: str | None = None


def machine_findings(machine: Hardware) -> Iterator[Check]:
    """Memory, what others do to it, heat, and the limits of containers."""
    text = f"{bytes_text(machine.available_bytes)} of {bytes_text(machine.memory_bytes)} available"
    if machine.available_bytes < _LOW_MEMORY_BYTES:
        yield Check("memory", "warning", text, "close other programs, or serve a smaller model")
    else:
        yield Check("memory", "ok", text)
    if machine.memory_limit_bytes is not None and machine.memory_limit_bytes < machine.memory_bytes:
        yield Check("container", "ok", f"memory is limited to {bytes_text(machine.memory_limit_bytes)}")
    if machine.usable_cores < 1:
        fix = "grant the container at least one processor (docker run --cpus)"
        yield Check("processors", "warning", f"only {machine.usable_cores:g} of a processor may be used", fix)
    stall = machine.memory_stall_percent
    if stall is not None and stall >= _STALLED_PERCENT:
        fix = "close other programs, or set memory.limit_bytes lower"
        yield Check("memory pressure", "warning", f"programs wait for memory {stall:g} % of the time", fix)
    elif stall is not None:
        yield Check("memory pressure", "ok", f"programs wait for memory {stall:g} % of the time")
    if machine.mac is not None:
        yield from _mac_findings(machine.mac, machine.memory_bytes)


def _mac_findings(mac: MacFacts, memory_bytes: int) -> Iterator[Check]:
    if mac.memory_pressure in ("warning", "critical"):
        fix = "close other programs, or set memory.limit_bytes lower; under pressure Macs have panicked"
        yield Check("memory pressure", "warning", f"macOS calls it {mac.memory_pressure}", fix)
    elif mac.memory_pressure is not None:
        yield Check("memory pressure", "ok", f"macOS calls it {mac.memory_pressure}")
    if mac.speed_limit_percent is not None and mac.speed_limit_percent < _FULL_SPEED:
        text = f"the processor is slowed down to {mac.speed_limit_percent} % because of heat"
        yield Check("heat", "warning", text, "let air to the machine, and close what else keeps it busy")
    elif mac.speed_limit_percent is not None:
        yield Check("heat", "ok", "the processor is not slowed down")
    safe = wired_limit_mb(memory_bytes)
    if mac.wired_limit_mb is not None and mac.wired_limit_mb > safe:
        text = f"iogpu.wired_limit_mb is {mac.wired_limit_mb}, which leaves the system too little"
        yield Check("wired limit", "warning", text, f"sudo sysctl iogpu.wired_limit_mb={safe} (0 is the system's own)")
    elif mac.wired_limit_mb is not None:
        raised = f"; it may be raised: sudo sysctl iogpu.wired_limit_mb={safe}" if mac.wired_limit_mb < safe else ""
        own = "the system's own" if mac.wired_limit_mb == 0 else f"{mac.wired_limit_mb} MB"
        yield Check("wired limit", "ok", f"of the GPU: {own}{raised}")


def download_finding(directory: Path, free_bytes: int) -> Check:
    """Of the cache that models are downloaded to."""
    text = f"{directory}, {bytes_text(free_bytes)} free"
    if free_bytes < LOW_DISK_BYTES:
        fix = "free disk space (mlx-serving models list; mlx-serving models rm), or set HF_HOME to another disk"
        return Check("downloads", "warning", text, fix)
    return Check("downloads", "ok", text)


def port_finding(host: str, port: int) -> Check:
    """Of the address that the server is to listen on."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.create_server((host, port), family=found[0][0]):
            return Check("port", "ok", f"{place} is free")
    except socket.gaierror as error:
        return Check("port", "warning", f"{host} is no address: {error.strerror}", _OTHER_HOST)
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # without what Python adds to it
        if error.errno == errno.EADDRINUSE:
            fix = "stop what listens there, or set server.port (--port) to another one"
        elif error.errno == errno.EACCES:
            fix = "set server.port (--port) to one that is not reserved for the system"
        else:
            fix = _OTHER_HOST
        return Check("port", "warning", f"{place} cannot be listened on: {reason}", fix)
