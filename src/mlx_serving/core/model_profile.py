"""What holds under a model's name where a request is silent, and what no request under it may exceed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from mlx_serving.core.generation import ChatPrompt, EmbeddingInputs, GenerationRequest, Priority, Prompt, SamplingParams
from mlx_serving.core.speculation.request import Speculation, SpeculationMethod
from mlx_serving.core.volatile_lines import SYSTEM_ROLES, without_volatile_lines
from mlx_serving.errors import InvalidRequest

_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "xtc_probability",
    "xtc_threshold",
    "repetition_penalty",
    "repetition_context_size",
)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """None, and an empty collection, say nothing. The first fields are defaults of `SamplingParams`.

    A `system_prompt` opens conversations that have none of their own, `chat_template` renders them instead of the
    model's, in Jinja, and `template_kwargs` are handed to it unless the request has them. Lines of system messages that
    begin with one of `volatile_lines` are left out, besides those that always are. A request of priority
    `normal` asks for none, and gets `priority`. `max_tokens_limit` bounds the answer, `timeout_s` the time. The last
    three are those of `Speculation`, whose draft model is optional then.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int | None = None
    stop: tuple[str, ...] = ()
    system_prompt: str | None = None
    chat_template: str | None = None
    template_kwargs: Mapping[str, object] = field(default_factory=dict[str, object])
    volatile_lines: tuple[str, ...] = ()
    priority: Priority | None = None
    max_tokens_limit: int | None = None
    timeout_s: float | None = None
    speculation: SpeculationMethod | None = None
    draft_model: str | None = None
    num_draft_tokens: int | None = None

    def given(self) -> dict[str, object]:
        """What it says, by the names of its fields."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in said.items() if value not in (None, (), {})}

    def over(self, base: ModelProfile) -> ModelProfile:
        """Both, and this one where they differ."""
        kwargs = {**base.template_kwargs, **self.template_kwargs}
        return replace(base, **{**self.given(), "template_kwargs": kwargs})

    def applied_to(self, request: GenerationRequest, default_max_tokens: int) -> GenerationRequest:
        """`default_max_tokens` is what a request gets of which nobody says anything. Raises `InvalidRequest` for a
        `max_tokens`, unless it may be cut, or `min_tokens` above the limit, and where a draft model is missing, or one
        too many."""
        sampling, limit = request.sampling, self.max_tokens_limit
        if limit is not None and request.cut_to_fit and (sampling.max_tokens or 0) > limit:
            sampling = replace(sampling, max_tokens=limit)
        for name, asked in (("max_tokens", sampling.max_tokens), ("min_tokens", sampling.min_tokens)):
            if limit is not None and asked is not None and asked > limit:
                raise InvalidRequest(
                    f"{name} must be at most {limit} for {request.model}, got {asked}",
                    field=name,
                    limit=limit,
                    given=asked,
                )
        times = [time for time in (request.timeout_s, self.timeout_s) if time is not None]
        return replace(
            request,
            prompt=prompt if isinstance(prompt := request.prompt, EmbeddingInputs) else self.prompt(prompt),
            sampling=self._sampling(sampling, default_max_tokens),
            priority=self.priority if self.priority and request.priority == "normal" else request.priority,
            timeout_s=min(times, default=None),
            speculation=self._speculation(request),
        )

    def prompt(self, prompt: Prompt) -> Prompt:
        """The prompt with what a conversation leaves open; others are as they are."""
        if not isinstance(prompt, ChatPrompt):
            return prompt
        messages = without_volatile_lines(prompt.messages, self.volatile_lines)
        if self.system_prompt is not None and not any(each.get("role") in SYSTEM_ROLES for each in messages):
            messages = ({"role": "system", "content": self.system_prompt}, *messages)
        return replace(
            prompt,
            messages=messages,
            template_kwargs={**self.template_kwargs, **prompt.template_kwargs},
            chat_template=self.chat_template if prompt.chat_template is None else prompt.chat_template,
        )

    def _sampling(self, sampling: SamplingParams, default_max_tokens: int) -> SamplingParams:
        defaults = {name: getattr(self, name) for name in _SAMPLING if getattr(sampling, name) is None}
        if self.stop and not sampling.stop:
            defaults["stop"] = self.stop
        if sampling.max_tokens is None:
            defaults["max_tokens"] = self._max_tokens(sampling.min_tokens, default_max_tokens)
        return replace(sampling, **defaults)

    def _speculation(self, request: GenerationRequest) -> Speculation:
        """With the method that `auto` means here, but for the worker's own."""
        asked = request.speculation
        if isinstance(request.prompt, EmbeddingInputs):
            return asked
        if asked.problem is not None:
            field, rule = asked.problem
            raise InvalidRequest(f"{field} {rule}", field=field)
        method, draft_model, optional = asked.method, asked.draft_model, asked.optional
        if asked.prediction is not None:
            method = "ngram"
        if draft_model is None and method == "auto":
            method = self.speculation or "auto"
        if draft_model is None and method in ("auto", "draft"):
            draft_model, optional = self.draft_model, self.draft_model is not None
        if draft_model is not None:
            method = "draft"
        elif method == "draft":
            raise InvalidRequest(
                f"draft_model is required when speculation is draft: {request.model} has none of its own",
                field="draft_model",
            )
        drafted = self.num_draft_tokens if asked.num_draft_tokens is None else asked.num_draft_tokens
        return Speculation(method, draft_model, drafted, optional, asked.prediction)

    def _max_tokens(self, min_tokens: int, default: int) -> int | None:
        """A default gives way to a longer minimum that is asked for, and to the limit."""
        wanted = None if self.max_tokens is None else max(self.max_tokens, min_tokens)
        if self.max_tokens_limit is None or (wanted or max(default, min_tokens)) <= self.max_tokens_limit:
            return wanted
        return self.max_tokens_limit


NO_PROFILE = ModelProfile()
