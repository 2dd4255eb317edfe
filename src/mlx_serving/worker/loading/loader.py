"""From the name of a model to a model in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias, cast

import mlx.core as mx
import msgspec
from mlx_lm.utils import get_total_parameters

from mlx_serving.core import kv_form
from mlx_serving.core.load_pace import LoadPace
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.wire.methods import LoadModelParams, LoadModelResult, ModelCapabilities
from mlx_serving.worker import cpu_attention
from mlx_serving.worker.grammar.structure import StructureCompiler
from mlx_serving.worker.loading.capabilities import kv_bytes_and_logits, packed_kv_bytes, probing
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.model_files import OnProgress, blaming, read_weights_ahead
from mlx_serving.worker.loading.model_shape import (
    context_length_of,
    prefill_memory_of,
    quantization_of,
    text_config,
    vocabulary_of,
)
from mlx_serving.worker.loading.small_files import SmallFiles
from mlx_serving.worker.loading.weights import FindBase, WeightPlan, parameters
from mlx_serving.worker.model_runner import RunnerFactory
from mlx_serving.worker.output_style import find_style, knows_tools
from mlx_serving.worker.packed_kv import make_caches
from mlx_serving.worker.prefix.kv import is_plain
from mlx_serving.worker.vision.architecture import VisionText, open_model
from mlx_serving.worker.vision.attention import ATTENTIONS
from mlx_serving.worker.vision.trial import trying

RequireMemory = Callable[[int], None]
"""Called with the bytes that a model's weights will take, in the form they are loaded in and beside those that are
there already, before they are read; raises `InsufficientMemory` if they do not fit."""


@dataclass(slots=True)
class Aside:
    """Work that needs no arrays: for another thread, while this one does something else."""

    work: Callable[[], None]


Loading: TypeAlias = Generator[Aside | None, None, LoadedModel]
"""A load in slices: after each one others may have their turn, and where an `Aside` is given, it must be done first."""


def load(
    params: LoadModelParams,
    make_runner: RunnerFactory,
    on_progress: OnProgress,
    require_memory: RequireMemory = lambda weights: None,
    find_base: FindBase = lambda key: None,
) -> LoadedModel:
    """`loading`, all at once."""
    slices = loading(params, make_runner, on_progress, require_memory, find_base, LoadPace(1.0))
    while True:
        try:
            aside = next(slices)
        except StopIteration as end:
            return cast(LoadedModel, end.value)
        if aside is not None:
            aside.work()


def loading(
    params: LoadModelParams,
    make_runner: RunnerFactory,
    on_progress: OnProgress,
    require_memory: RequireMemory,
    find_base: FindBase,
    pace: LoadPace,
    *,
    read_ahead: Callable[[], bool] = lambda: False,
) -> Loading:
    """Find, prepare and load a model, in slices as `pace` says; `on_progress` tells that it lives. Where others want
    their turns, which `read_ahead` tells, its files are read into the page cache first, on another thread.

    `find_base` gives the weights of models that are loaded by their key, to be shared. Raises `ModelNotFound` for a
    name that leads nowhere, `ModelLoadError` for a model that cannot be loaded, `InvalidRequest` for a name that cannot
    be one and for a form that its weights cannot have, and what `require_memory` raises.
    """
    files = SmallFiles(params, on_progress)
    yield Aside(files.find)
    directory = files.directory
    options = options_of(params)
    if files.sees:
        _require_plain(params)
    with blaming("its weights", params.model_id, directory):
        if not any(directory.glob("*.safetensors")):
            raise FileNotFoundError(f"there is no *.safetensors file in {directory}")
        plan = WeightPlan(params.model_id, directory, files.config, options, find_base)
        digest = plan.identity(files.digest)
        needed = plan.needed_bytes
    require_memory(needed)
    on_progress("reading", 0, needed)
    yield Aside(files.read)
    if needed and read_ahead():
        yield Aside(lambda: read_weights_ahead(directory, on_progress))
    words = files.words
    blind: str | None = "it reads text only"
    with blaming("its architecture or weights", params.model_id, directory):
        model, config = plan.open(partial(open_model, config=files.config)) if files.sees else plan.open()
        yield None
        for done, total in plan.evaluate(model, pace):
            on_progress("loading", done, total)
            yield None
        model, base, own_bytes = plan.adapt(model, config)
        cpu_attention.speed_up(model)
        known = params.known
        if known is not None and known.config_digest == digest:
            capabilities = known.capabilities
        else:
            capabilities = yield from probing(model)
        if params.draft:
            require_draft(params.model_id, capabilities)
        per_token, logits = kv_bytes_and_logits(model)
        if options.kv is not None:
            per_token = packed_kv_bytes(model, options.kv, capabilities, params.model_id)
        yield None
        if isinstance(model, VisionText):
            if capabilities.images is None:
                blind = yield from trying(model, words.prompts)
                images = None if blind else model.attention.name
                capabilities = msgspec.structs.replace(capabilities, images=images)
            else:
                model.attention, blind = ATTENTIONS[capabilities.images], None
            yield None
    weights = parameters(model)
    dtype = _dtype(weights)
    limit = context_length_of(config)
    facts = LoadModelResult(
        model_id=params.model_id,
        state="ready",
        context_length=min(params.context_length, limit) if params.context_length else limit,
        parameter_count=get_total_parameters(model),
        dtype=dtype,
        is_vision_model=blind is None,
        cached_path=str(directory),
        model_type=str(config.get("model_type", "")),
        vocab_size=min(vocabulary_of(config, words.tokenizer), logits),
        memory_bytes=sum(weight.nbytes for weight in weights),
        has_chat_template=words.tokenizer.has_chat_template,
        capabilities=capabilities,
        config_digest=digest,
        quantization=quantization_of(config),
        adapter=options.adapter,
        kv_bits=None if options.kv is None else options.kv.bits,
        kv_group_size=None if options.kv is None else options.kv.group_size,
        kv_bytes_per_token=per_token,
        own_bytes=None if base is None else own_bytes,
        base=None if base is None else hashlib.sha256(base.key.encode()).hexdigest(),
        eos_token_ids=sorted(words.eos_token_ids),
    )
    return LoadedModel(
        facts=facts,
        model=model,
        tokenizer=words.prompts,
        structures=StructureCompiler(words.tokenizer, params.model_id, facts.vocab_size, words.eos_token_ids),
        decode=words.decode,
        token_bytes=words.token_bytes,
        generation_config=files.generation_config,
        eos_token_ids=words.eos_token_ids,
        spared_token_ids=words.spared_token_ids,
        make_runner=make_runner,
        kv_bytes_per_token=per_token,
        prefill_memory=prefill_memory_of(
            text_config(config), 4 if dtype == "float32" else 2, packed_kv=options.kv is not None
        ),
        output=find_style(words.tokenizer, params.tool_parser, params.reasoning_parser),
        knows_tools=knows_tools(words.tokenizer),
        decode_marked=words.decode_marked,
        fingerprint=_fingerprint(directory, f"{digest} {options.kv}", dtype, files.sees),
        cuttable=capabilities.trim and is_plain(make_caches(model, options.kv)),
        options=options,
        base=base,
        own_bytes=own_bytes,
        blind=blind,
    )


def require_draft(model_id: str, capabilities: ModelCapabilities) -> None:
    """Raises `InvalidRequest` for a model that cannot draft for others."""
    if not capabilities.draft:
        raise InvalidRequest(
            f"draft: {model_id} cannot draft for other models, because it cannot take tokens back",
            field="draft",
            given=True,
        )


def options_of(params: LoadModelParams) -> WeightOptions:
    """Raises `InvalidRequest` for a form that there is not."""
    kv = kv_form.of(params.kv_bits, params.kv_group_size)
    return WeightOptions(params.quantization, params.adapter_path, params.fuse_adapter, kv)


def _fingerprint(directory: Path, form: str, dtype: str, sees: bool) -> str:
    """What the KV of the model depends on besides tokens: its files, the form they and it are in, and the code that
    computes it."""
    software = " ".join(f"{name} {version(name)}" for name in ("mlx", "mlx-lm", *(["mlx-vlm"] if sees else [])))
    files = sorted(directory.glob("*.safetensors"))
    stamps = ((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    told = repr((form, dtype, software, *stamps))
    return hashlib.sha256(told.encode()).hexdigest()


def _require_plain(params: LoadModelParams) -> None:
    """Raises `UnsupportedParameter` for a form in which only models of text are loaded."""
    for name, value in (("quantization", params.quantization), ("adapter_path", params.adapter_path)):
        if value not in (None, "none"):
            raise UnsupportedParameter(
                f"{name} is not supported for {params.model_id}: it is a vision-language model, which is loaded as its "
                "files are",
                field=name,
                given=value,
            )


def _dtype(weights: list[mx.array]) -> str:
    """The floating-point type that most bytes of the unpacked weights have."""
    sizes: dict[str, int] = {}
    for weight in weights:
        if mx.issubdtype(weight.dtype, mx.floating):
            name = str(weight.dtype).removeprefix("mlx.core.")
            sizes[name] = sizes.get(name, 0) + weight.nbytes
    return max(sizes, key=lambda name: sizes[name]) if sizes else "unknown"
