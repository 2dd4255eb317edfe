"""Beginning and ending streams. A prompt is tokenized and a grammar compiled off this thread; meanwhile the stream is
`opening`."""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llguidance import LLMatcher

from mlx_serving.core import sampling_defaults
from mlx_serving.core.output.output_parser import OutputParser
from mlx_serving.core.reasoning_budget import ThoughtBudget
from mlx_serving.core.sampling_defaults import ResolvedSampling, SamplingDefaults
from mlx_serving.errors import Aborted, EngineError, InvalidRequest
from mlx_serving.wire import methods
from mlx_serving.wire.notifications import Row, StepFrame
from mlx_serving.worker.answer_form import form_of, parser_of, thought_of
from mlx_serving.worker.embedding.handlers import EmbedHandlers
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.grammar.checker import GrammarChecker
from mlx_serving.worker.grammar.matcher import Matcher
from mlx_serving.worker.grammar.structure import Form
from mlx_serving.worker.job import Job, Terms
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.loaded_models import LoadedModels
from mlx_serving.worker.parsed_sequence import ParsedSequence
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.prefix.disk import PrefixDisk
from mlx_serving.worker.requests import (
    check_ids,
    check_images,
    check_tools,
    is_forced,
    prompt_of,
    rules_of,
    sampling_of,
    structure_of,
    tokens_that_fit,
)
from mlx_serving.worker.routes import Reply, Route
from mlx_serving.worker.sampling.row import TokenRules
from mlx_serving.worker.sequence import Ending, RunningSequence
from mlx_serving.worker.speculation.pairs import DraftPairs
from mlx_serving.worker.speculation.wanted import wanted_of
from mlx_serving.worker.tokenizer_thread import TokenizerThread, guarded
from mlx_serving.worker.vision.pictures import Prepared


@dataclass(frozen=True, slots=True)
class _Opened:
    """What other threads make of a request."""

    prepared: Prepared
    rules: TokenRules
    parser: OutputParser | None
    thought: ThoughtBudget | None
    form: Form | None
    stops: tuple[int, ...] = ()
    matcher: Matcher | None = None
    expected: tuple[int, ...] = ()


class StreamHandlers:
    def __init__(
        self,
        outbox: Outbox,
        models: LoadedModels,
        generation: Generation,
        tokenizers: TokenizerThread,
        grammars: TokenizerThread,
        defaults: SamplingDefaults,
        embeds: EmbedHandlers,
        pairs: DraftPairs,
        disk: PrefixDisk | None = None,
    ) -> None:
        self._outbox = outbox
        self._models = models
        self._generation = generation
        self._tokenizers = tokenizers
        self._grammars = grammars
        self._checker = GrammarChecker()
        self._defaults = defaults
        self._disk = disk
        self._embeds = embeds
        self._pairs = pairs
        # Stream id -> model id, while the prompt is tokenized, or the beginning of it read.
        self._opening: dict[str, str] = {}

    def routes(self) -> tuple[Route[Any, Any], ...]:
        return (
            Route(methods.GENERATE, self.generate),
            Route(methods.ABORT, self.abort),
            Route(methods.PAUSE, self.pause),
            Route(methods.RESUME, self.resume),
        )

    @property
    def opening(self) -> int:
        """Streams whose prompt is being tokenized."""
        return len(self._opening)

    def __len__(self) -> int:
        """Streams that were asked for and have not ended."""
        return len(self._generation) + len(self._opening)

    def count(self, model_id: str) -> int:
        """The same, of one model."""
        return len(self._generation.stream_ids(model_id)) + sum(
            opening == model_id for opening in self._opening.values()
        )

    def abort_all(self, model_id: str) -> None:
        """End every stream of a model."""
        rows = [self._generation.abort(stream_id) for stream_id in self._generation.stream_ids(model_id)]
        self._emit([row for row in rows if row is not None])
        for stream_id in [stream_id for stream_id, opening in self._opening.items() if opening == model_id]:
            del self._opening[stream_id]

    def generate(self, params: methods.GenerateParams, reply: Reply[methods.GenerateResult]) -> None:
        model = self._models.get(params.model_id)
        stream_id = params.stream_id or str(uuid.uuid4())
        if stream_id in self._opening or stream_id in self._generation or stream_id in self._embeds:
            raise InvalidRequest(f"A stream with the id {stream_id} is active", field="stream_id", given=stream_id)
        prompt = prompt_of(params)
        sampling_params = sampling_of(params)
        sampling_defaults.validate(sampling_params)
        sampling = sampling_defaults.resolve(sampling_params, model.generation_config, self._defaults)
        check_ids(params, model)
        check_tools(params, model)
        check_images(params.messages, params.images, model)
        structure = structure_of(params)
        draft = None if params.draft_model_id is None else self._models.get(params.draft_model_id)
        speculation = wanted_of(params, draft)
        seed = _seed(sampling)
        started_at, started = time.time(), time.monotonic()
        self._opening[stream_id] = model.model_id

        def read_ahead(opened: _Opened) -> None:
            token_ids = [*opened.prepared.names, *params.delivered]
            if self._disk is None or not self._disk.read_ahead(
                model.model_id, token_ids, params.cache_salt, params.caller, guarded(lambda: admit(opened), refuse)
            ):
                admit(opened)

        def admit(opened: _Opened) -> None:
            token_ids = opened.prepared.token_ids
            if self._opening.pop(stream_id, None) is None:
                reply.fail(Aborted("The stream was aborted before it began", stream_id=stream_id))
                return
            max_tokens = tokens_that_fit(
                len(token_ids),
                None if params.cut_to_fit else params.max_tokens,
                sampling.max_tokens,
                model.facts.context_length,
                sampling.min_tokens,
            )
            deadline = None if params.timeout_s is None else started + params.timeout_s
            terms = Terms(
                max_tokens,
                params.priority,
                params.caller,
                deadline,
                params.fork_of,
                params.cache_salt,
                opened.stops,
            )
            job = Job(
                stream_id,
                token_ids,
                sampling,
                seed,
                opened.rules,
                params.delivered,
                opened.matcher,
                opened.thought,
                max_tokens,
                opened.prepared.pictures,
                replace(speculation, expected=opened.expected),
            )
            self._submit(model, job, terms, started, opened.parser)
            reply.send(methods.GenerateResult(stream_id, started_at, len(token_ids)))

        def refuse(error: EngineError) -> None:
            self._opening.pop(stream_id, None)
            reply.fail(error)

        def tokenize() -> _Opened:
            if draft is not None:
                self._pairs.require(model, draft)
            rules = rules_of(sampling, model)
            prepared = model.tokenizer.prepare(prompt)
            token_ids = prepared.token_ids
            form = form_of(params, structure, model, token_ids)
            compiled = None if form is None else model.structures.find(form)
            opened = _Opened(
                prepared,
                rules,
                parser_of(params, model, token_ids, seed),
                thought_of(params, model, token_ids),
                form,
                stops=() if model.cuttable else model.tokenizer.stops(prompt, token_ids),
                expected=model.tokenizer.expected(params.prediction),
            )
            return opened if compiled is None else follow(opened, compiled)

        def follow(opened: _Opened, compiled: LLMatcher) -> _Opened:
            assert opened.form is not None
            field = opened.form.structure.field
            matcher = model.structures.matcher(compiled, params.delivered, sampling, opened.rules.ends, field)
            return replace(opened, matcher=matcher)

        def compile_if_need_be(opened: _Opened) -> None:
            form = opened.form
            if form is None or opened.matcher is not None:
                read_ahead(opened)
                return
            compiling = partial(model.structures.compile, form, self._checker)
            self._grammars.submit(lambda: follow(opened, compiling()), read_ahead, refuse)

        has_form = structure is not None or is_forced(params)
        self._tokenizers.submit(tokenize, compile_if_need_be, refuse, quick=has_form)

    def _submit(self, model: LoadedModel, job: Job, terms: Terms, started: float, parser: OutputParser | None) -> None:
        asked = job.sampling
        ending = Ending(terms.max_tokens, job.rules.ends, asked.stop, asked.min_tokens)
        if parser is None:
            sequence = RunningSequence(job.stream_id, job.token_ids, ending, model.decode, started)
        else:
            sequence = ParsedSequence(job.stream_id, job.token_ids, ending, model.decode_marked, started, parser)
        sequence.replay(job.drawn)
        self._generation.submit(model, sequence, job, terms)

    def abort(self, params: methods.AbortParams, reply: Reply[methods.AbortResult]) -> None:
        row = self._generation.abort(params.stream_id)
        was_opening = self._opening.pop(params.stream_id, None) is not None
        self._emit([row] if row is not None else [])
        found = row is not None or was_opening or self._embeds.abort(params.stream_id)
        reply.send(methods.AbortResult(found))

    def pause(self, params: methods.StreamParams, reply: Reply[methods.StreamResult]) -> None:
        found = params.stream_id in self._generation
        self._emit(self._generation.pause(params.stream_id))
        reply.send(methods.StreamResult(found))

    def resume(self, params: methods.StreamParams, reply: Reply[methods.StreamResult]) -> None:
        self._generation.resume(params.stream_id)
        reply.send(methods.StreamResult(params.stream_id in self._generation))

    def _emit(self, rows: list[Row]) -> None:
        if rows:
            self._outbox.notify(StepFrame(rows))


def _seed(sampling: ResolvedSampling) -> int:
    return sampling.seed if sampling.seed is not None else secrets.randbits(64)
