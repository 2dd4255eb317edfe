"""What a server says about itself is said in values that cannot change under the reader."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from mlx_serving.core.serving import CrashReport, HealthReport, ServedModel, WorkerHealth


def test_a_model_is_not_the_default_and_knows_no_context_until_it_is_told() -> None:
    model = ServedModel("small", "org/small", 0, "absent")
    assert (model.default, model.context_length, model.error) == (False, None, None)


def test_a_report_stays_as_it_was_while_the_worker_goes_on() -> None:
    crash = CrashReport(at=1.0, cause="exited", signal="SIGKILL")
    before = HealthReport("degraded", 1.0, 0, (), (WorkerHealth("starting", 0.0, restarts=1, last_crash=crash),))
    after = replace(before, status="healthy", workers=(replace(before.worker, state="ready"),))
    assert (before.status, before.worker.state) == ("degraded", "starting")
    assert after.worker.last_crash is crash
    with pytest.raises(FrozenInstanceError):
        before.status = "healthy"  # pyright: ignore[reportAttributeAccessIssue]  that is the point
