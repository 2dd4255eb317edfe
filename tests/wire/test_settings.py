from __future__ import annotations

import pytest

from mlx_serving.core.memory_budget import MemoryPolicy
from mlx_serving.core.sampling_defaults import SamplingDefaults
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.errors import InvalidConfig
from mlx_serving.wire import settings
from mlx_serving.wire.framing import DEFAULT_MAX_MESSAGE_BYTES
from mlx_serving.wire.settings import WorkerSettings


def test_settings_cross_a_command_line_unchanged() -> None:
    given = WorkerSettings(
        max_message_bytes=1024,
        scheduler=SchedulerPolicy(
            max_num_seqs=2, max_queue=1, kv_budget_bytes=1 << 30, target_gap_s=0.25, max_prefill_chunk=64
        ),
        sampling=SamplingDefaults(temperature=0.25),
        memory=MemoryPolicy(share=0.5, limit_bytes=1 << 34, buffer_cache_bytes=0),
        kv_share=0.75,
        restart_count=3,
    )
    text = settings.encode(given)
    assert "\n" not in text
    assert settings.decode(text) == given


def test_a_worker_started_by_hand_needs_no_settings() -> None:
    assert settings.decode("{}") == WorkerSettings()
    assert WorkerSettings().max_message_bytes == DEFAULT_MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "truncated"),
        ("[]", "object"),
        ("not json", "malformed"),
        ('{"max_sequences": 1}', "max_sequences"),
        ('{"scheduler": {"max_num_seqs": 0}}', "max_num_seqs must be at least 1, got 0"),
        ('{"max_message_bytes": 0}', "max_message_bytes"),
        ('{"scheduler": {"max_queue": 0}}', "max_queue must be at least 1, got 0"),
        ('{"scheduler": {"min_prefill_chunk": 1, "max_prefill_chunk": 0}}', "max_prefill_chunk"),
        ('{"scheduler": {"target_gap_s": 0}}', "target_gap_s"),
        ('{"scheduler": {"max_num_seqs": "2"}}', r"scheduler\.max_num_seqs"),
        ('{"sampling": {"temperature": -1}}', "temperature"),
        ('{"memory": {"share": 2}}', "share must be between 0.1 and 1, got 2"),
        ('{"kv_share": 0}', "kv_share"),
    ],
)
def test_wrong_settings_say_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(InvalidConfig, match=named):
        settings.decode(text)
