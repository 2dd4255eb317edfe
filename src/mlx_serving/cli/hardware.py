"""The verb `hardware`: tell what this machine is made of, and which settings and models suit it."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlx_serving.cli.config_arguments import add_config_arguments, load_from_arguments
from mlx_serving.cli.tables import bytes_text, print_pairs, print_table
from mlx_serving.machine.device import device_name

if TYPE_CHECKING:
    from mlx_serving.config.schema import Config
    from mlx_serving.core.recommendations import Device, Fit, ModelSize, Recommendation
    from mlx_serving.machine.hardware import Hardware
    from mlx_serving.wire.methods import RuntimeInfoResult

EPILOG = """\
examples:
  mlx-serving hardware
  mlx-serving hardware --model mlx-community/Qwen3-4B-bf16
  mlx-serving hardware --json

A worker is started to ask MLX for the device; no model is loaded. With --model, of a model that is on this machine
(mlx-serving pull), the exit status is 1 when it does not fit in any form.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help="hub id, alias, GGUF file or directory to be fitted")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit at the hub")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mlx_serving.core.memory_budget import Capacity
    from mlx_serving.core.recommendations import common_sizes, recommend
    from mlx_serving.machine import hardware

    config = load_from_arguments(args).config
    sizes = () if args.model is None else (_size(args.model, args.revision),)  # wrong names before anything starts
    machine, info = hardware.read(), asyncio.run(_ask_worker(config))
    device = _device(info)
    room = Capacity(info.memory.capacity, info.memory.limited_by)
    found = {
        size: recommend(room, config.memory, device, len(machine.cuda_devices), size)
        for size in sizes or common_sizes(device)
    }
    if args.json:
        document = {"machine": _facts(machine, info), "models": [_model(*pair) for pair in found.items()]}
        print(json.dumps(document, indent=2))
    else:
        _print_machine(machine, info)
        _print_models(found)
        if sizes:
            _print_settings(found[sizes[0]], sizes[0], args.revision)
    return 1 if sizes and found[sizes[0]].fit is None else 0


async def _ask_worker(config: Config) -> RuntimeInfoResult:
    """One that has its device to itself, as is recommended: several would each plan with a part of its memory."""
    from mlx_serving import assembly

    core = assembly.build(config.model_copy(update={"workers": 1}))
    try:
        await core.start_workers()
        return await core.runtime_info()
    finally:
        await core.stop()


def _device(info: RuntimeInfoResult) -> Device:
    if "gpu" not in info.device:
        return "cpu"
    return "metal" if info.metal else "cuda"


def _size(text: str, revision: str | None) -> ModelSize:
    from mlx_serving.catalog.model_size import measure
    from mlx_serving.catalog.prepare import locate
    from mlx_serving.catalog.reference import parse_reference
    from mlx_serving.errors import ModelNotFound

    path = locate(parse_reference(text, revision))
    if path is None:
        raise ModelNotFound(f"{text} is not on this machine: mlx-serving pull {text}", model=text)
    return measure(text, path)


def _facts(machine: Hardware, info: RuntimeInfoResult) -> dict[str, object]:
    return {
        **asdict(machine),
        "device": device_name(info.device, metal=info.metal),
        "device_name": info.device_name,
        "working_set_bytes": info.working_set_bytes,
        "blas": info.blas.name,
        "mlx": info.mlx_version,
        "capacity_bytes": info.memory.capacity,
        "limited_by": info.memory.limited_by,
    }


def _print_machine(machine: Hardware, info: RuntimeInfoResult) -> None:
    mac = machine.mac
    cores = str(machine.cores)
    if machine.usable_cores < machine.cores:
        cores += f", of which {machine.usable_cores:g} may be used"
    if mac is not None and mac.performance_cores is not None:
        cores = f"{machine.cores}: {mac.performance_cores} for performance, {mac.efficiency_cores or 0} for efficiency"
    print_pairs(
        {
            "system": f"{machine.system}, {machine.architecture}",
            "chip": machine.chip,
            "cores": cores,
            "instructions": " ".join(machine.cpu_flags) or None,
            "memory": f"{bytes_text(machine.memory_bytes)}, {bytes_text(machine.available_bytes)} available",
            "container limit": bytes_text(machine.memory_limit_bytes) or None,
            "gpu cores": None if mac is None else mac.gpu_cores,
            "metal": None if mac is None else mac.metal,
            "gpu working set": bytes_text(info.working_set_bytes) or None,
            "wired limit": None if mac is None or not mac.wired_limit_mb else bytes_text(mac.wired_limit_mb << 20),
            "cuda devices": ", ".join(machine.cuda_devices) or None,
            "device": f"{device_name(info.device, metal=info.metal)} {info.device_name}".strip(),
            "blas": info.blas.name,
            "mlx": info.mlx_version,
            "for models": f"{bytes_text(info.memory.capacity)}, limited by {info.memory.limited_by}",
        }
    )


def _print_models(found: Mapping[ModelSize, Recommendation]) -> None:
    print()
    print_table(
        ("model", "as it is", "recommended", "weights", "tokens of KV cache", "sequences"),
        [
            (
                size.name,
                bytes_text(size.weights_bytes),
                _form(advice.fit),
                "" if advice.fit is None else bytes_text(advice.fit.weights_bytes),
                "" if advice.fit is None else _tokens(advice.fit, size),
                "" if advice.fit is None else advice.settings["scheduler.max_num_seqs"],
            )
            for size, advice in found.items()
        ],
    )


def _form(fit: Fit | None) -> str:
    if fit is None:
        return "does not fit"
    return "as it is" if fit.quantization is None else str(fit.quantization)


def _tokens(fit: Fit, size: ModelSize) -> str:
    """That KV caches have room for; those of a recurrent model do not grow."""
    return f"{fit.kv_tokens:,}" if size.kv_bytes_per_token else "any number"


def _print_settings(advice: Recommendation, size: ModelSize, revision: str | None) -> None:
    print()
    for form in advice.forms:
        room = (
            f"{_tokens(form, size)} tokens of KV cache" if size.kv_bytes_per_token else "fits; its caches do not grow"
        )
        text = room if form.kv_tokens else "does not fit"
        print(f"  {_form(form) if form.quantization else 'as it is':<12}{bytes_text(form.weights_bytes):>12}  {text}")
    if advice.fit is not None:
        print()
        settings = dict(advice.settings) | ({} if revision is None else {"models.served.0.revision": revision})
        flags = " ".join(f"--set {shlex.quote(f'{path}={value}')}" for path, value in settings.items())
        print(f"apply with: mlx-serving serve --model {shlex.quote(size.name)} {flags}")


def _model(size: ModelSize, advice: Recommendation) -> dict[str, object]:
    return {
        "model": size.name,
        "weights_bytes": size.weights_bytes,
        "kv_bytes_per_token": size.kv_bytes_per_token,
        "fits": advice.fit is not None,
        "recommended": None if advice.fit is None else _fit(advice.fit),
        "settings": dict(advice.settings) if advice.fit is not None else {},
        "forms": [_fit(form) for form in advice.forms],
    }


def _fit(form: Fit) -> dict[str, object]:
    return {
        "quantization": None if form.quantization is None else str(form.quantization),
        "weights_bytes": form.weights_bytes,
        "kv_bytes": form.kv_bytes,
        "kv_tokens": form.kv_tokens,
    }
