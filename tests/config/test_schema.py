import dataclasses
from collections.abc import Callable, Mapping
from typing import get_type_hints

import pytest
from annotated_types import Ge, Gt, Le
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mlx_serving.config import policies
from mlx_serving.config.generation import GenerationConfig
from mlx_serving.config.policies import (
    BackoffConfig,
    CircuitBreakerConfig,
    MemoryConfig,
    RetryBackoffConfig,
    RetryConfig,
    WorkerConfig,
)
from mlx_serving.config.schema import Config, SchedulerConfig
from mlx_serving.core.circuit_breaker import CircuitBreakerPolicy
from mlx_serving.core.flow_control import FlowPolicy
from mlx_serving.core.memory_budget import MemoryPolicy
from mlx_serving.core.retry import BackoffPolicy, RetryPolicy
from mlx_serving.core.sampling_defaults import SamplingDefaults
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.worker_lifecycle import WorkerPolicy

SECTIONS: list[tuple[Callable[..., object], object]] = [
    (BackoffConfig, BackoffPolicy()),
    (CircuitBreakerConfig, CircuitBreakerPolicy()),
    (MemoryConfig, MemoryPolicy()),
    (RetryBackoffConfig, RetryPolicy().backoff),
    (RetryConfig, RetryPolicy()),
    (WorkerConfig, WorkerPolicy()),
]


def fields_of(policy: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(policy)
    return {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}


def refused(given: Mapping[str, object]) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(given)
    return [(".".join(str(part) for part in issue["loc"]), issue["type"]) for issue in caught.value.errors()]


@pytest.mark.parametrize(("section", "policy"), SECTIONS)
def test_sections_are_policies_with_the_defaults_of_core(section: Callable[..., object], policy: object) -> None:
    configured = section()
    assert isinstance(configured, type(policy))
    for name, default in fields_of(policy).items():
        ours: object = getattr(configured, name)
        if isinstance(default, BackoffPolicy):
            assert fields_of(ours) == fields_of(default)
        else:
            assert ours == default


@pytest.mark.parametrize(("section", "policy"), SECTIONS)
def test_core_agrees_with_the_limits_of_every_field(section: Callable[..., object], policy: object) -> None:
    hints = get_type_hints(section, dict(vars(policies)), include_extras=True)
    for name, default in fields_of(policy).items():
        if isinstance(default, BackoffPolicy):
            continue
        (info,) = (extra for extra in hints[name].__metadata__ if isinstance(extra, FieldInfo))
        outside = [value for constraint in info.metadata for value in _just_outside(constraint)]
        assert outside, f"{name} has no limit"
        for value in outside:
            with pytest.raises(ValueError, match=name):
                section(**{name: value})


def _just_outside(constraint: object) -> list[float]:
    match constraint:
        case Ge(ge=limit) if isinstance(limit, int | float):
            return [limit - 1]
        case Gt(gt=limit) if isinstance(limit, int | float):
            return [limit]
        case Le(le=limit) if isinstance(limit, int | float):
            return [limit + 1]
        case _:
            return []


def test_generation_has_the_defaults_of_core() -> None:
    assert GenerationConfig().sampling_defaults == SamplingDefaults()
    assert {field.name for field in dataclasses.fields(SamplingDefaults)} <= GenerationConfig.model_fields.keys()


@given(
    max_tokens=st.integers(1, 10_000),
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 1000),
    min_p=st.floats(0, 1),
    typical_p=st.floats(0, 1, exclude_min=True),
    xtc_probability=st.floats(0, 1),
    xtc_threshold=st.floats(0, 0.5),
    repetition_penalty=st.floats(0, 10, exclude_min=True),
    repetition_context_size=st.integers(0, 1000),
)
def test_core_accepts_every_generation_section_that_is_valid(**fields: float) -> None:
    config = GenerationConfig.model_validate(fields)
    assert dataclasses.asdict(config.sampling_defaults) == fields


def test_a_default_that_nobody_chose_gives_way_to_the_limit() -> None:
    config = Config.model_validate({"generation": {"max_tokens_limit": 100}})
    assert config.generation.sampling_defaults.max_tokens == 100


def test_a_chosen_default_beyond_the_limit_is_refused() -> None:
    assert refused({"generation": {"max_tokens_limit": 100, "max_tokens": 101}}) == [("generation", "max_tokens")]


def test_a_lower_mark_that_nobody_chose_gives_way_to_the_upper_one() -> None:
    config = Config.model_validate({"scheduler": {"pause_at_tokens": 10}})
    assert config.scheduler.flow == FlowPolicy(10, 9)
    assert Config().scheduler.flow == FlowPolicy()


def test_a_stream_that_would_be_paused_and_resumed_at_once_is_refused() -> None:
    given = {"scheduler": {"pause_at_tokens": 64, "resume_at_tokens": 64}}
    assert refused(given) == [("scheduler", "resume_at_tokens")]


def test_scalars_may_be_text() -> None:
    config = Config.model_validate(
        {
            "server": {"port": "9000", "drain_timeout_s": "0.5", "access_log": "no", "api_key": "0123"},
            "generation": {"timeout_s": None},
        }
    )
    assert config.server.port == 9000
    assert config.server.drain_timeout_s == 0.5
    assert config.server.access_log is False
    assert config.server.api_key is not None
    assert config.server.api_key.get_secret_value() == "0123"
    assert config.generation.timeout_s is None


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("server", "port", "65536"),
        ("server", "port", "-1"),
        ("server", "port", "true"),
        ("server", "port", "1.5"),
        ("server", "host", ""),
        ("server", "host", "a b"),
        ("server", "api_key", ""),
        ("server", "api_key", "with space"),
        ("server", "api_key", "ümlaut"),
        ("server", "api_key", "x" * 513),
        ("server", "max_body_bytes", "1023"),
        ("server", "drain_timeout_s", "nan"),
        ("server", "access_log", "perhaps"),
        ("generation", "temperature", "2.1"),
        ("generation", "timeout_s", "0"),
        ("generation", "timeout_s", "inf"),
        ("scheduler", "max_num_seqs", "0"),
        ("worker", "heartbeat_interval_s", "nan"),
        ("worker", "max_message_bytes", "1"),
        ("worker", "blas", ""),
        ("circuit_breaker", "failure_threshold", "0"),
        ("retry", "max_attempts", "0"),
        ("logging", "level", "loud"),
    ],
)
def test_values_outside_their_limits_are_refused_at_their_path(section: str, key: str, value: str) -> None:
    assert [path for path, _ in refused({section: {key: value}})] == [f"{section}.{key}"]


def test_every_section_refuses_unknown_keys() -> None:
    sections = [name for name in Config.model_fields if name != "workers"]
    paths = [path for path, _ in refused({**{name: {"zzz": 1} for name in sections}, "zzz": 1})]
    assert sorted(paths) == sorted([*(f"{name}.zzz" for name in sections), "zzz"])


def test_a_rule_between_fields_of_a_policy_is_reported_at_its_section() -> None:
    assert refused({"worker": {"heartbeat_interval_s": 6}}) == [("worker", "value_error")]
    assert refused({"retry": {"backoff": {"initial_delay_s": 6}}}) == [("retry.backoff", "value_error")]


def test_setting_one_field_of_a_back_off_keeps_the_defaults_of_its_place() -> None:
    config = Config.model_validate({"retry": {"backoff": {"jitter": 0}}, "worker": {"backoff": {"jitter": 0}}})
    assert config.retry.backoff.max_delay_s == RetryPolicy().backoff.max_delay_s
    assert config.worker.backoff.max_delay_s == WorkerPolicy().backoff.max_delay_s


def test_secrets_are_masked_wherever_a_config_is_printed() -> None:
    config = Config.model_validate({"server": {"api_key": "hunter2", "admin_key": "hunter3"}})
    assert "hunter" not in f"{config!r}{config}{config.model_dump()}{config.model_dump_json()}"


def test_a_refused_secret_is_not_quoted() -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"server": {"api_key": "hunter 2"}})
    assert "hunter" not in str(caught.value)


def test_the_scheduler_obeys_what_is_configured() -> None:
    assert SchedulerConfig().policy == SchedulerPolicy()
    configured = SchedulerConfig(max_num_seqs=2, max_queue=3, prefill_step_size=64, target_gap_s=0.5).policy
    assert configured == SchedulerPolicy(max_num_seqs=2, max_queue=3, max_prefill_chunk=64, target_gap_s=0.5)


def test_a_prefill_step_below_the_smallest_chunk_makes_chunks_that_small() -> None:
    policy = SchedulerConfig(prefill_step_size=1).policy
    assert (policy.min_prefill_chunk, policy.max_prefill_chunk) == (1, 1)
