"""From the name of a model to a model in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, cast

import mlx.core as mx
from mlx_lm.utils import get_total_parameters, load_tokenizer

from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.core import kv_form
from mlx_serving.core.images.models import sees
from mlx_serving.core.load_pace import LoadPace
from mlx_serving.core.output.output_formats import MARKERS
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.machine import page_cache
from mlx_serving.wire.methods import LoadModelParams, LoadModelResult, ModelCapabilities
from mlx_serving.worker.grammar.structure import StructureCompiler
from mlx_serving.worker.loading.capabilities import kv_bytes_and_logits, packed_kv_bytes, probing
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.model_files import blaming, read_object
from mlx_serving.worker.loading.model_shape import prefill_memory_of
from mlx_serving.worker.loading.weights import FindBase, WeightPlan, parameters, tensor_names
from mlx_serving.worker.model_runner import RunnerFactory
from mlx_serving.worker.output_style import find_style, knows_tools
from mlx_serving.worker.packed_kv import make_caches
from mlx_serving.worker.prefix.kv import is_plain
from mlx_serving.worker.token_bytes import TokenBytes
from mlx_serving.worker.tokenizing import PromptTokenizer, make_decoder
from mlx_serving.worker.vision.architecture import VisionText, is_known, open_model
from mlx_serving.worker.vision.processing import Processor
from mlx_serving.worker.vision.tokenizer import VisionTokenizer, with_template
from mlx_serving.worker.vision.trial import why_blind

DEFAULT_CONTEXT_LENGTH = 8192
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx", "seq_length", "model_max_length")

OnProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on, at least once a piece of work."""

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
    files = _Files(params, on_progress)
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
        yield Aside(lambda: _read_ahead(directory, on_progress))
    words = files.words
    blind: str | None = "it reads text only"
    with blaming("its architecture or weights", params.model_id, directory):
        model, config = (
            plan.open(partial(open_model, config=files.config, model_id=params.model_id)) if files.sees else plan.open()
        )
        yield None
        for done, total in plan.evaluate(model, pace):
            on_progress("loading", done, total)
            yield None
        model, base, own_bytes = plan.adapt(model, config)
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
            blind = why_blind(model, words.prompts)
            yield None
    weights = parameters(model)
    dtype = _dtype(weights)
    limit = _context_length(config)
    facts = LoadModelResult(
        model_id=params.model_id,
        state="ready",
        context_length=min(params.context_length, limit) if params.context_length else limit,
        parameter_count=get_total_parameters(model),
        dtype=dtype,
        is_vision_model=blind is None,
        cached_path=str(directory),
        model_type=str(config.get("model_type", "")),
        vocab_size=min(_vocabulary(config, words.tokenizer), logits),
        memory_bytes=sum(weight.nbytes for weight in weights),
        has_chat_template=words.tokenizer.has_chat_template,
        capabilities=capabilities,
        config_digest=digest,
        quantization=_quantization(config),
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
            _text_config(config), 4 if dtype == "float32" else 2, packed_kv=options.kv is not None
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


class _Files:
    """What a thread without arrays finds out: `find` first, then `read`."""

    directory: Path
    config: Mapping[str, object]
    digest: str
    generation_config: Mapping[str, object]
    words: _Words
    sees: bool

    def __init__(self, params: LoadModelParams, on_progress: OnProgress) -> None:
        self._params = params
        self._on_progress = on_progress

    def find(self) -> None:
        directory = self.directory = _directory(self._params, self._on_progress)
        with blaming("its config.json", self._params.model_id, directory):
            self.config = read_object(directory / "config.json")
            self.digest = hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
        with blaming("its weights", self._params.model_id, directory):
            names = tensor_names(directory)
        with blaming("its config.json", self._params.model_id, directory):
            self.sees = sees(self.config, names) and is_known(self.config)

    def read(self) -> None:
        directory, model_id = self.directory, self._params.model_id
        with blaming("its generation_config.json", model_id, directory):
            path = directory / "generation_config.json"
            self.generation_config = read_object(path) if path.exists() else {}
        with blaming("its tokenizer", model_id, directory):
            self.words = _Words(directory, self.config)
        if self.sees:
            with blaming("its processor", model_id, directory):
                self.words.see(directory, self.config)


class _Words:
    """What the tokenizer is needed for, a copy for each thread that will have one."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        # Said outright: left open, transformers asks on stdin whether code from the directory may run.
        self.tokenizer = load_tokenizer(
            directory, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
        self.decode = make_decoder(self.tokenizer)
        self.token_bytes = TokenBytes(self.tokenizer)
        self.prompts = PromptTokenizer(self.tokenizer)
        self.decode_marked = make_decoder(self.tokenizer, MARKERS)
        self.eos_token_ids = frozenset(self.tokenizer.eos_token_ids)
        self.spared_token_ids = self.eos_token_ids | set(self.prompts.encode("\n", add_special_tokens=False))

    def see(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Have prompts take images."""
        processor = Processor(directory, config)
        vocabulary = _vocabulary(config, self.tokenizer)
        self.prompts = VisionTokenizer(with_template(self.tokenizer, processor), processor, vocabulary)


def _read_ahead(directory: Path, on_progress: OnProgress) -> None:
    files = sorted(directory.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    done = 0

    def tell(count: int) -> bool:
        nonlocal done
        done += count
        on_progress("reading", done, size)
        return True

    for file in files:
        page_cache.read_into(file, tell)


def _directory(params: LoadModelParams, on_progress: OnProgress) -> Path:
    reference = parse_reference(params.local_path or params.model_id, params.revision)
    return prepare(reference, lambda step: on_progress(step.stage, step.done, step.total))


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return cast(Mapping[str, Any], nested) if isinstance(nested, Mapping) else config


def _context_length(config: Mapping[str, Any]) -> int:
    for source in (config, _text_config(config)):
        for key in _CONTEXT_KEYS:
            value = source.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return DEFAULT_CONTEXT_LENGTH


def _vocabulary(config: Mapping[str, Any], tokenizer: Any) -> int:
    for source in (config, _text_config(config)):
        value = source.get("vocab_size")
        if isinstance(value, int) and value > 0:
            return value
    return len(tokenizer)


def _dtype(weights: list[mx.array]) -> str:
    """The floating-point type that most bytes of the unpacked weights have."""
    sizes: dict[str, int] = {}
    for weight in weights:
        if mx.issubdtype(weight.dtype, mx.floating):
            name = str(weight.dtype).removeprefix("mlx.core.")
            sizes[name] = sizes.get(name, 0) + weight.nbytes
    return max(sizes, key=lambda name: sizes[name]) if sizes else "unknown"


def _quantization(config: Mapping[str, Any]) -> str | None:
    quantization = config.get("quantization")
    if not isinstance(quantization, Mapping):
        return None
    facts = cast(Mapping[str, Any], quantization)
    mode = facts.get("mode", "affine")
    return f"{facts.get('bits')}-bit, group {facts.get('group_size')}" + (f", {mode}" if mode != "affine" else "")
