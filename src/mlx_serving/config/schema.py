"""Everything that can be configured: one record per section, strict about unknown keys.

Scalars may be given as text (`"8000"`); that is how they come out of files, variables and flags.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.images import ImagesConfig
from mlx_serving.config.policies import (
    BatchQueueConfig,
    CircuitBreakerConfig,
    MemoryConfig,
    PrefixCacheConfig,
    ResponseCacheConfig,
    RetryConfig,
    SharingConfig,
    StoredResponsesConfig,
    WorkerConfig,
)
from mlx_serving.config.served_models import NO_SPACES, ModelsConfig
from mlx_serving.core.flow_control import FlowPolicy
from mlx_serving.core.sampling_defaults import SamplingDefaults
from mlx_serving.core.schedule.scheduling import SchedulerPolicy

_FLOW = FlowPolicy()
_SAMPLING = SamplingDefaults()
_SCHEDULER = SchedulerPolicy()

MAX_KEY_CHARS = 512


def _sendable(key: SecretStr) -> SecretStr:
    """A key that clients can put into a header. The message must not quote it."""
    text = key.get_secret_value()
    if not 1 <= len(text) <= MAX_KEY_CHARS or not all("!" <= char <= "~" for char in text):
        raise PydanticCustomError(
            "key",
            "must be 1 to {limit} printable ASCII characters without spaces, to fit into a header",
            {"limit": MAX_KEY_CHARS},
        )
    return key


Key = Annotated[SecretStr, AfterValidator(_sendable)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class ServerConfig(Section):
    """The HTTP server."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        pattern=NO_SPACES,
        description="Address to listen on; `0.0.0.0` is every interface.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes any free one.")
    api_key: Key | None = Field(default=None, description="Secret that every client must send; null lets everybody in.")
    admin_key: Key | None = Field(
        default=None, description="Secret for the administrative requests; null switches those requests off."
    )
    max_body_bytes: int = Field(
        default=16 * 1024**2,
        ge=1024,
        le=1024**3,
        description="Largest request body, in bytes; pictures are in it as base64, which takes a third more.",
    )
    max_response_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="Largest text of one answer, of all its choices together, in bytes; a longer one ends with an "
        "error. Null leaves it to `max_tokens`.",
    )
    keepalive_s: float | None = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="A streamed answer that is silent for so long gets a comment, in seconds, but only while the "
        "worker makes progress; null sends none.",
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, le=86_400, description="Time that running requests have to finish at shutdown, in seconds."
    )
    resume_file: str | None = Field(
        default=None,
        min_length=1,
        description="File for requests that are not finished at the end of a shutdown; the next start with the same "
        "file finishes them, and their clients get the rest from `/v1/resumed/ID`. It holds prompts; only its owner "
        "can read it. Null: such requests are cut off.",
    )
    resume_max_age_s: float = Field(
        default=3600.0,
        ge=1,
        le=2_592_000,
        description="Requests of `resume_file` are forgotten when nobody has fetched their answers for so long, in "
        "seconds.",
    )
    access_log: bool = Field(default=True, description="Whether every request is logged.")
    cors_origins: str | None = Field(
        default=None,
        pattern=r"^(\*|https?://[^/\s]+( +https?://[^/\s]+)*)$",
        description="Origins whose scripts may call this server from a browser, separated by spaces, as in "
        "`https://chat.example.org`; `*` is every origin, null none.",
    )
    tls_cert: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the certificate, and those up to its root; null serves unencrypted HTTP.",
    )
    tls_key: str | None = Field(default=None, min_length=1, description="PEM file with the key of `tls_cert`.")

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_key", "tls_cert") if self.tls_cert is None else ("tls_cert", "tls_key")
            raise PydanticCustomError("tls", "needs {missing} as well", {"missing": missing, "at": [given]})
        return self


class KeysConfig(Section):
    """API keys with limits of their own, beside `server.api_key`, which has none."""

    file: str | None = Field(
        default=None,
        min_length=1,
        description="JSON file of API keys, which `mlx-serving keys` writes; it is read again when it changes.",
    )
    inline: SecretStr | None = Field(
        default=None, description="The content of such a file, for keys that come from the environment."
    )
    state_file: str | None = Field(
        default=None,
        min_length=1,
        description="File that remembers what each key has spent today; null forgets it at every start.",
    )


class GenerationConfig(Section):
    """What holds where a request, and its model, leave something open; and what no request may exceed."""

    max_tokens: int = Field(default=_SAMPLING.max_tokens, ge=1, description="Tokens to generate at most.")
    temperature: float = Field(
        default=_SAMPLING.temperature, ge=0, le=2, description="Randomness; 0 always takes the likeliest token."
    )
    top_p: float = Field(
        default=_SAMPLING.top_p,
        gt=0,
        le=1,
        description="Sample from the likeliest tokens of this total probability; 1 is off.",
    )
    top_k: int = Field(default=_SAMPLING.top_k, ge=0, description="Sample from this many likeliest tokens; 0 is off.")
    min_p: float = Field(
        default=_SAMPLING.min_p,
        ge=0,
        le=1,
        description="Drop tokens that are less likely than this fraction of the likeliest one; 0 is off.",
    )
    typical_p: float = Field(
        default=_SAMPLING.typical_p,
        gt=0,
        le=1,
        description="Sample from the tokens of this total probability whose surprise is nearest to the mean; 1 is off.",
    )
    xtc_probability: float = Field(
        default=_SAMPLING.xtc_probability,
        ge=0,
        le=1,
        description="How often, of the tokens above `xtc_threshold`, all but the least likely are removed; 0 is off.",
    )
    xtc_threshold: float = Field(
        default=_SAMPLING.xtc_threshold, ge=0, le=0.5, description="Probability above which XTC removes tokens."
    )
    repetition_penalty: float = Field(
        default=_SAMPLING.repetition_penalty, gt=0, description="Above 1, recent tokens become less likely; 1 is off."
    )
    repetition_context_size: int = Field(
        default=_SAMPLING.repetition_context_size,
        ge=0,
        description="Recent tokens of prompt and answer that `repetition_penalty` looks at; 0 is all of them.",
    )
    max_tokens_limit: int | None = Field(
        default=None,
        ge=1,
        description="Largest `max_tokens` a request may ask for; null leaves it to the model's context.",
    )
    timeout_s: float | None = Field(
        default=300.0, gt=0, description="Time a request may take, in seconds; null is no limit."
    )

    @model_validator(mode="after")
    def _default_fits_limit(self) -> Self:
        limit = self.max_tokens_limit
        if limit is not None and "max_tokens" in self.model_fields_set and self.max_tokens > limit:
            raise PydanticCustomError(
                "max_tokens",
                "must be at most max_tokens_limit ({limit}), got {given}",
                {"limit": limit, "given": self.max_tokens, "at": ["max_tokens"]},
            )
        return self

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """The defaults as `core` takes them; a default nobody chose gives way to `max_tokens_limit`."""
        return SamplingDefaults(
            max_tokens=min(self.max_tokens, self.max_tokens_limit or self.max_tokens),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            typical_p=self.typical_p,
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            repetition_penalty=self.repetition_penalty,
            repetition_context_size=self.repetition_context_size,
        )


class SchedulerConfig(Section):
    """How requests share the device."""

    max_num_seqs: int = Field(default=16, ge=1, le=1024, description="Sequences that are generated at the same time.")
    prefill_step_size: int = Field(
        default=_SCHEDULER.max_prefill_chunk,
        ge=1,
        le=65_536,
        description="Prompt tokens processed at once at most; fewer while streams run, to keep `target_gap_s`.",
    )
    target_gap_s: float = Field(
        default=_SCHEDULER.target_gap_s,
        gt=0,
        le=60,
        description="Longest time between two tokens of a stream that the prompts of others may bring about, "
        "in seconds; on a slow device up to five times what a token takes alone.",
    )
    max_queue: int = Field(
        default=256,
        ge=1,
        le=1_000_000,
        description="Requests that may wait; further ones are refused with a time to retry.",
    )
    max_queue_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="Longest time to wait, in seconds: who would wait longer by the pace of late is refused with a "
        "time to retry; null leaves it to `max_queue`.",
    )
    pause_at_tokens: int = Field(
        default=_FLOW.pause_at_tokens,
        ge=1,
        le=1_000_000,
        description="A stream is paused when so many of its tokens wait for a client that reads too slowly.",
    )
    resume_at_tokens: int = Field(
        default=_FLOW.resume_at_tokens,
        ge=0,
        le=1_000_000,
        description="A paused stream goes on when no more of its tokens wait; less than `pause_at_tokens`.",
    )

    @model_validator(mode="after")
    def _resumes_below_the_pause(self) -> Self:
        if "resume_at_tokens" in self.model_fields_set and self.resume_at_tokens >= self.pause_at_tokens:
            raise PydanticCustomError(
                "resume_at_tokens",
                "must be less than pause_at_tokens ({limit}), got {given}",
                {"limit": self.pause_at_tokens, "given": self.resume_at_tokens, "at": ["resume_at_tokens"]},
            )
        return self

    @property
    def flow(self) -> FlowPolicy:
        """When streams are paused and go on; a lower mark that nobody chose gives way to the upper one."""
        return FlowPolicy(self.pause_at_tokens, min(self.resume_at_tokens, self.pause_at_tokens - 1))

    @property
    def policy(self) -> SchedulerPolicy:
        """What the scheduler obeys."""
        return SchedulerPolicy(
            max_num_seqs=self.max_num_seqs,
            max_queue=self.max_queue,
            target_gap_s=self.target_gap_s,
            min_prefill_chunk=min(_SCHEDULER.min_prefill_chunk, self.prefill_step_size),
            max_prefill_chunk=self.prefill_step_size,
        )


class LoggingConfig(Section):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is logged."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto",
        description="`console` for people, `json` for machines; `auto` asks whether stderr is a terminal.",
    )


class Config(Section):
    """The configuration of mlx-serving."""

    server: ServerConfig = Field(default=ServerConfig(), description="The HTTP server.")
    keys: KeysConfig = Field(
        default=KeysConfig(), description="API keys with limits of their own, beside `server.api_key`, which has none."
    )
    models: ModelsConfig = Field(default=ModelsConfig(), description="The models that clients can name.")
    generation: GenerationConfig = Field(
        default=GenerationConfig(),
        description="Defaults for what a request and its model leave open, and limits no request may exceed.",
    )
    images: ImagesConfig = Field(
        default=ImagesConfig(), description="Pictures in conversations: how many, how large, and where from."
    )
    scheduler: SchedulerConfig = Field(default=SchedulerConfig(), description="How requests share the device.")
    memory: MemoryConfig = Field(default=MemoryConfig(), description="How much memory the worker plans with.")
    prefix_cache: PrefixCacheConfig = Field(
        default=PrefixCacheConfig(),
        description="What is kept of prompts and answers, so that others that begin alike need not compute it again.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Worker processes: each has a GPU of its own as far as there are several, else they share one "
        "device and its memory. A stream whose worker dies goes on in another one.",
    )
    worker: WorkerConfig = Field(default=WorkerConfig(), description="The worker process and how it is kept alive.")
    circuit_breaker: CircuitBreakerConfig = Field(
        default=CircuitBreakerConfig(), description="When calls to a failing worker are answered at once with an error."
    )
    retry: RetryConfig = Field(default=RetryConfig(), description="How calls that can be repeated safely are repeated.")
    batch_queue: BatchQueueConfig = Field(
        default=BatchQueueConfig(),
        description="How small calls, such as counting tokens, share messages to the worker.",
    )
    sharing: SharingConfig = Field(default=SharingConfig(), description="Whether equal requests share a computation.")
    response_cache: ResponseCacheConfig = Field(
        default=ResponseCacheConfig(),
        description="Answers that are kept to be given again to requests that are greedy or seeded.",
    )
    stored_responses: StoredResponsesConfig = Field(
        default=StoredResponsesConfig(), description="What `/v1/responses` keeps, so that clients may go on from it."
    )
    logging: LoggingConfig = Field(default=LoggingConfig(), description="What is logged, and how it looks.")
