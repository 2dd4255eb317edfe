import pytest

from mlx_serving.core.schedule.scheduling import PrefillChunk, SchedulerPolicy, Step


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_num_seqs", 0, "max_num_seqs must be at least 1, got 0"),
        ("max_queue", 0, "max_queue must be at least 1, got 0"),
        ("batch_queue_share", 1.5, "batch_queue_share must be between 0 and 1, got 1.5"),
        ("kv_budget_bytes", 0, "kv_budget_bytes must be at least 1, got 0"),
        ("target_gap_s", 0, "target_gap_s must be greater than 0, got 0"),
        ("min_prefill_share", 1, "min_prefill_share must be between 0 and 0.95, got 1"),
        ("min_prefill_chunk", 0, "min_prefill_chunk must be at least 1, got 0"),
        ("max_prefill_chunk", 8, "max_prefill_chunk must be at least 16, got 8"),
        ("max_step_s", 0, "max_step_s must be greater than 0, got 0"),
        ("ageing_s", 0, "ageing_s must be greater than 0, got 0"),
        ("admission_window_s", -1, "admission_window_s must be at least 0, got -1"),
    ],
)
def test_a_policy_out_of_its_limits_is_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SchedulerPolicy(**{field: value})  # pyright: ignore[reportArgumentType]  the name decides the type


def test_a_memory_budget_may_be_given_or_not() -> None:
    assert SchedulerPolicy().kv_budget_bytes is None
    assert SchedulerPolicy(kv_budget_bytes=1).kv_budget_bytes == 1


def test_a_step_counts_its_prompt_tokens() -> None:
    chunks = (PrefillChunk("a", 0, 16, last=False), PrefillChunk("b", 3, 5, last=True))
    assert Step("m", (), (), (), chunks, (), 0.0).prefill_tokens == 21
