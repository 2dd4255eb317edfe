"""Everything that can be configured: one record per section, strict about unknown keys.

Scalars may be given as text (`"8000"`); that is how they come out of files, variables and flags.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.config.fields import Section
from mlx_serving.config.generation import GenerationConfig
from mlx_serving.config.images import ImagesConfig
from mlx_serving.config.policies import BatchQueueConfig, CircuitBreakerConfig, MemoryConfig, RetryConfig, WorkerConfig
from mlx_serving.config.reuse import PrefixCacheConfig, ResponseCacheConfig, SharingConfig, StoredResponsesConfig
from mlx_serving.config.served_models import ModelsConfig
from mlx_serving.config.server import KeysConfig, ServerConfig
from mlx_serving.core.flow_control import FlowPolicy
from mlx_serving.core.schedule.scheduling import SchedulerPolicy

_FLOW = FlowPolicy()
_SCHEDULER = SchedulerPolicy()


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
