"""The verb `doctor`: check this machine and this installation, and say how to mend what is wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlx_serving.cli.config_arguments import add_config_arguments, explain, load_from_arguments
from mlx_serving.cli.machine_findings import LOW_DISK_BYTES, Check, download_finding, machine_findings, port_finding
from mlx_serving.cli.tables import bytes_text
from mlx_serving.errors import EngineError, InvalidConfig
from mlx_serving.machine.device import device_name

if TYPE_CHECKING:
    from mlx_serving.config.schema import Config
    from mlx_serving.wire.methods import RuntimeInfoResult

EPILOG = """\
examples:
  mlx-serving doctor
  mlx-serving doctor --json

The exit status is 1 when something is wrong, 0 otherwise; a warning is not wrong.
"""

_MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    checks = [_python(), *_machine(), _cache()]
    config, config_check = _config(args)
    checks.append(config_check)
    info: RuntimeInfoResult | None = None
    if config is not None:
        checks += [port_finding(config.server.host, config.server.port), *_prefixes(config), *_models(config)]
        info, worker_check = asyncio.run(_worker(config))
        checks.append(worker_check)
        if info is not None:
            checks += _device(info, config.worker.blas)
    failed = any(check.level == "error" for check in checks)
    if args.json:
        print(json.dumps(_as_json(checks, info, ok=not failed), indent=2))
    else:
        for check in checks:
            print(f"{_MARKS[check.level]} {check.name}: {check.message}")
            if check.fix is not None:
                print(f"    fix: {check.fix}")
    return 1 if failed else 0


def _as_json(checks: list[Check], info: RuntimeInfoResult | None, *, ok: bool) -> dict[str, object]:
    return {
        "ok": ok,
        "blas": None if info is None else {"name": info.blas.name, "library": info.blas.path or None},
        "device": None if info is None else device_name(info.device, metal=info.metal),
        "metal": None if info is None else info.metal,
        "versions": None
        if info is None
        else {"mlx_serving": info.version, "mlx": info.mlx_version, "mlx_lm": info.mlx_lm_version},
        "checks": [asdict(check) for check in checks],
    }


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"{version} at {sys.executable}")


def _machine() -> Iterator[Check]:
    from mlx_serving.catalog.hub import Hub
    from mlx_serving.machine import hardware

    yield from machine_findings(hardware.read())
    hub = Hub()
    yield download_finding(hub.directory, hub.free_bytes())


def _cache() -> Check:
    import shutil

    from mlx_serving.catalog.store import cache_directory

    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return Check(
            "cache", "error", f"{directory}: {error.strerror}", "set MLX_SERVING_CACHE to a writable directory"
        )
    text = f"{directory}, {bytes_text(free)} free"
    if free < LOW_DISK_BYTES:
        return Check("cache", "warning", text, "free disk space, or set MLX_SERVING_CACHE to another disk")
    return Check("cache", "ok", text)


def _prefixes(config: Config) -> Iterator[Check]:
    """Of the folder that the prefix cache is to be kept in, where there is one."""
    import shutil
    import tempfile
    from pathlib import Path

    name, folder = "prefix cache", config.prefix_cache.disk.path
    if folder is None or not config.prefix_cache.enabled:
        return
    directory = Path(folder).expanduser().absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            free = shutil.disk_usage(directory).free
    except OSError as error:
        fix = "set prefix_cache.disk.path to a folder that can be written to, or to null"
        yield Check(name, "warning", f"nothing can be kept in {directory}: {error.strerror}", fix)
        return
    text = f"{directory}, {bytes_text(free)} free"
    if free < LOW_DISK_BYTES:
        yield Check(name, "warning", text, "free disk space, or set prefix_cache.disk.path to another disk")
    else:
        yield Check(name, "ok", text)


def _config(args: argparse.Namespace) -> tuple[Config | None, Check]:
    try:
        loaded = load_from_arguments(args)
    except InvalidConfig as error:
        return None, Check("config", "error", explain(error), "mlx-serving config check")
    return loaded.config, Check("config", "ok", "valid; `mlx-serving config show` tells where each value comes from")


def _models(config: Config) -> Iterator[Check]:
    from mlx_serving.catalog.integrity import look
    from mlx_serving.catalog.prepare import locate
    from mlx_serving.catalog.reference import ModelDirectory, parse_reference

    for served in config.models.served:
        name = f"model {served.name}"
        try:
            reference = parse_reference(served.model, served.revision)
            path = locate(reference)
        except EngineError as error:
            yield Check(name, "error", error.message, str(error.details.get("command") or "check models.served"))
            continue
        if path is None:
            yield Check(name, "ok", "not on this machine yet; it is prepared when it is first needed")
        elif damages := look(path):
            fix = f"mlx-serving pull {served.model}"
            if isinstance(reference, ModelDirectory):
                fix = f"copy what is named to {path} again, from where the model came from"
            yield Check(name, "error", "; ".join(map(str, damages[:3])), fix)
        else:
            yield Check(name, "ok", str(path))


async def _worker(config: Config) -> tuple[RuntimeInfoResult | None, Check]:
    """Start a real worker: the only way to know that it starts here."""
    from mlx_serving import assembly

    try:
        core = assembly.build(config)
    except InvalidConfig as error:
        return None, Check("worker", "error", error.message, "mend the setting that is named, or what it leads to")
    try:
        await core.start_workers()
        info = await core.runtime_info()
    except EngineError as error:
        fix = error.details.get("advice") or error.details.get("stderr_tail") or _worker_fix(config)
        return None, Check("worker", "error", error.message, str(fix))
    finally:
        await core.stop()
    return info, Check("worker", "ok", f"starts; mlx {info.mlx_version}, mlx-lm {info.mlx_lm_version}")


def _worker_fix(config: Config) -> str:
    """Where it says nothing itself."""
    if config.worker.python is not None:
        return "set worker.python to an interpreter in which mlx-serving is installed, or to null"
    return "mlx-serving serve --set logging.level=debug shows what it logs; make install brings what it lacks"


def _device(info: RuntimeInfoResult, wanted_blas: str) -> Iterator[Check]:
    if info.metal:
        yield Check("device", "ok", device_name(info.device, metal=info.metal))
    elif sys.platform == "darwin":
        yield Check("device", "warning", "Metal is not available", "use a Mac with Apple silicon")
    else:
        yield Check("device", "ok", device_name(info.device, metal=info.metal))
    if info.blas.name.startswith("reference"):
        from mlx_serving.machine import blas

        fix = "pip install cmeel-openblas (and set worker.blas to auto)"
        installed = blas.find(wanted_blas).path
        if installed and blas.lacks_fortran_runtime():
            fix = f"{installed} needs libgfortran.so.5: apt-get install libgfortran5, or what brings it on this system"
        elif installed:
            fix = f"{installed} was not loaded, see the worker's log"
        yield Check("blas", "warning", f"{info.blas.name}: much slower than a tuned one", fix)
    else:
        yield Check("blas", "ok", f"{info.blas.name} {info.blas.path}".strip())
