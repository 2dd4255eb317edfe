"""A loaded model and its sequences in the test's own process, stepped by the test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.nn as nn
from mlx_lm.generate import generate, stream_generate
from mlx_lm.utils import load_adapters, load_model, load_tokenizer

from mlx_serving.core import sampling_defaults
from mlx_serving.core.generation import Priority, SamplingParams, Structure
from mlx_serving.core.prefix.index import PrefixCachePolicy
from mlx_serving.core.sampling_defaults import SamplingDefaults
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.wire.methods import KnownCapabilities, LoadModelParams
from mlx_serving.wire.notifications import Completed, Failed, Row
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.grammar.checker import GrammarChecker
from mlx_serving.worker.grammar.structure import Form
from mlx_serving.worker.job import Job, Terms
from mlx_serving.worker.loading import loader
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.weights import FindBase
from mlx_serving.worker.model_runner import ModelRunner, RunnerFactory
from mlx_serving.worker.prefix.cache import PrefixCache
from mlx_serving.worker.requests import rules_of
from mlx_serving.worker.sequence import Ending, RunningSequence
from mlx_serving.worker.speculation.drafter import NOT_WANTED, Wanted
from mlx_serving.worker.vision.features import FeatureCache
from mlx_serving.worker.vision.pictures import Picture

from ..tiny_models import EOS, token_ids

PREFILL_STEP_SIZE = 8
POLICY = SchedulerPolicy(
    max_num_seqs=8,
    min_prefill_chunk=PREFILL_STEP_SIZE,
    max_prefill_chunk=PREFILL_STEP_SIZE,
    target_gap_s=3600.0,
    max_step_s=3600.0,
    admission_window_s=0.0,
)
"""Under which steps do not depend on how fast the machine is: chunks have one size, and nobody waits for others."""
GREEDY = SamplingDefaults(temperature=0.0, max_tokens=24)


@dataclass(slots=True)
class Stream:
    """What one stream has given so far."""

    pieces: list[str] = field(default_factory=list[str])
    tokens: list[int] = field(default_factory=list[int])
    end: Completed | Failed | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def completed(self) -> Completed:
        assert isinstance(self.end, Completed)
        return self.end

    @property
    def failed(self) -> Failed:
        assert isinstance(self.end, Failed)
        return self.end


def load(
    directory: Path,
    *,
    model_id: str | None = None,
    context_length: int | None = None,
    known: KnownCapabilities | None = None,
    require_memory: loader.RequireMemory = lambda weights: None,
    options: WeightOptions | None = None,
    find_base: FindBase = lambda key: None,
    make_runner: RunnerFactory = ModelRunner,
) -> LoadedModel:
    form = options or WeightOptions()
    params = LoadModelParams(
        model_id=model_id or str(directory),
        local_path=str(directory),
        context_length=context_length,
        known=known,
        quantization=form.quantization,
        adapter_path=form.adapter,
        fuse_adapter=form.fuse_adapter,
        kv_bits=None if form.kv is None else form.kv.bits,
        kv_group_size=None if form.kv is None else form.kv.group_size,
    )
    return loader.load(params, make_runner, lambda stage, done, total: None, require_memory, find_base)


class Bench:
    """`model` and those that are added are served; sequences are of `model` unless another is named."""

    def __init__(
        self,
        model: LoadedModel,
        policy: SchedulerPolicy = POLICY,
        *,
        scheduler: Scheduler | None = None,
        prefix_policy: PrefixCachePolicy | None = None,
        features: FeatureCache | None = None,
        generation: Generation | None = None,
    ) -> None:
        """Beginnings of sequences are kept if there is a `prefix_policy`. `features` are those that the runner has."""
        self.model = model
        self.prefixes = PrefixCache(prefix_policy or PrefixCachePolicy(enabled=False))
        self.features = FeatureCache() if features is None else features
        self.scheduler = Scheduler(policy, self.prefixes, self.features) if scheduler is None else scheduler
        if generation is None:
            generation = Generation(self.scheduler, self.prefixes, self.features)
        self.generation = generation
        self.generation.models.add(model)
        self.streams: dict[str, Stream] = {}
        self._checker = GrammarChecker()

    def close(self) -> None:
        """After structures were asked for."""
        self._checker.close()

    def start(
        self,
        stream_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        model: LoadedModel | None = None,
        priority: Priority = "normal",
        deadline: float | None = None,
        fork_of: str | None = None,
        salt: str = "",
        stops: tuple[int, ...] = (),
        structure: Structure | None = None,
        pictures: tuple[Picture, ...] = (),
        drawn: Sequence[int] = (),
        speculation: Wanted | None = None,
    ) -> Stream:
        """Greedy and 24 tokens where `params` say nothing. Raises `Overloaded`."""
        model = model or self.model
        ids = token_ids(prompt) if isinstance(prompt, str) else list(prompt)
        sampling = sampling_defaults.resolve(params or SamplingParams(), model.generation_config, GREEDY)
        rules = rules_of(sampling, model)
        ending = Ending(sampling.max_tokens, rules.ends, sampling.stop, sampling.min_tokens)
        sequence = RunningSequence(stream_id, ids, ending, model.decode, time.monotonic())
        terms = Terms(sampling.max_tokens, priority, deadline=deadline, fork_of=fork_of, salt=salt, stops=stops)
        matcher = None
        if structure is not None:
            compiled = model.structures.compile(Form(structure), self._checker)
            matcher = model.structures.matcher(compiled, [], sampling, rules.ends, structure.field)
        wanted = speculation or NOT_WANTED
        seed = sampling.seed or 0
        job = Job(stream_id, ids, sampling, seed, rules, drawn, matcher, None, terms.max_tokens, pictures, wanted)
        sequence.replay(drawn)
        self.generation.submit(model, sequence, job, terms)
        return self.streams.setdefault(stream_id, Stream())

    def step(self, count: int = 1) -> list[Row]:
        rows: list[Row] = []
        for _ in range(count):
            frame = self.generation.step()
            rows += frame.rows if frame is not None else []
        return self._take(rows)

    def pause(self, stream_id: str) -> list[Row]:
        return self._take(self.generation.pause(stream_id))

    @property
    def prefilled(self) -> int:
        """Prompt tokens computed so far, over all models."""
        return sum(load.done.prefilled_tokens for load in self.scheduler.load().models.values())

    def finish(self) -> None:
        """Until all have ended but those that are paused."""
        while not self.generation.is_idle:
            self.step()

    def run(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Stream:
        """One stream, alone, to its end."""
        stream = self.start("alone", prompt, params)
        self.finish()
        del self.streams["alone"]
        return stream

    def _take(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            stream = self.streams[row.stream_id]
            assert stream.end is None, f"{row.stream_id} goes on after its end"
            stream.pieces.append(row.text)
            stream.tokens += row.token_ids
            stream.end = row.end
        return rows


class Reference:
    """mlx-lm itself, on a copy of the model of its own."""

    def __init__(self, directory: Path, adapter: Path | None = None) -> None:
        self._model: nn.Module = load_model(directory)[0]
        if adapter is not None:
            load_adapters(self._model, str(adapter)).eval()
        self._tokenizer = load_tokenizer(directory, eos_token_ids=EOS)

    def tokens(self, prompt: str, max_tokens: int) -> list[int]:
        """The greedy tokens, without the one that ends the turn."""
        responses = stream_generate(self._model, self._tokenizer, token_ids(prompt), max_tokens=max_tokens)
        return [token for token in (response.token for response in responses) if token != EOS]

    def text(self, prompt: str, max_tokens: int) -> str:
        return generate(self._model, self._tokenizer, token_ids(prompt), max_tokens=max_tokens)
