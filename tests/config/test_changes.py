"""From one configuration to another while it runs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.config.changes import Kept, Plan, plan, without
from mlx_serving.config.schema import Config

A = {"model": "org/a", "name": "a"}
B = {"model": "org/b", "name": "b"}
LAZY = {**B, "preload": False}


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


def serving(*models: dict[str, Any], default: str | None = None) -> Config:
    return config(models={"served": list(models), **({} if default is None else {"default": default})})


def names(models: tuple[Any, ...]) -> list[str]:
    return [model.name for model in models]


def test_nothing_changed_is_nothing_to_do() -> None:
    same = config(server={"api_key": "k"})
    assert plan(same, config(server={"api_key": "k"})) == Plan(same)


def test_settings_that_differ_are_told_by_path_and_apply() -> None:
    new = config(server={"drain_timeout_s": 5, "access_log": False}, logging={"level": "debug"})
    done = plan(config(), new)
    assert done == Plan(new, ("server.drain_timeout_s", "server.access_log", "logging.level"))


def test_a_key_that_changes_is_told_without_its_value() -> None:
    done = plan(config(server={"api_key": "old-key"}), config(server={"api_key": "new-key"}))
    assert done.changed == ("server.api_key",)
    assert "-key" not in repr(done)
    assert done.config.server.api_key is not None
    assert done.config.server.api_key.get_secret_value() == "new-key"


def test_where_responses_are_stored_stays_and_is_told() -> None:
    done = plan(config(), config(stored_responses={"path": "kept.db"}))
    assert done.kept == (Kept("stored_responses.path", None, "kept.db"),)
    assert done.config.stored_responses.path is None


def test_where_it_listens_stays_and_is_told() -> None:
    done = plan(config(), config(server={"port": 9000, "host": "::1", "access_log": False}, workers=2))
    assert done.kept == (
        Kept("server.host", "127.0.0.1", "::1"),
        Kept("server.port", 8000, 9000),
        Kept("workers", 1, 2),
    )
    assert done.config.workers == 1
    assert done.changed == ("server.access_log",)
    assert (done.config.server.host, done.config.server.port) == ("127.0.0.1", 8000)
    assert done.config.server.access_log is False


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("scheduler", {"max_num_seqs": 3}),
        ("memory", {"share": 0.5}),
        ("generation", {"temperature": 0.1}),
        ("generation", {"max_tokens_limit": 5}),  # the default of max_tokens gives way to it
        ("worker", {"blas": "none"}),
        ("worker", {"python": "/usr/bin/python3"}),
        ("worker", {"max_message_bytes": 100_000}),
        ("worker", {"heartbeat_interval_s": 0.5}),
    ],
)
def test_what_a_worker_is_started_with_needs_a_fresh_one(section: str, values: dict[str, Any]) -> None:
    assert plan(config(), config(**{section: values})).fresh_worker


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("scheduler", {"pause_at_tokens": 100}),
        ("generation", {"timeout_s": 5}),
        ("generation", {"max_tokens_limit": 5000}),
        ("worker", {"max_restarts": 1}),
        ("circuit_breaker", {"failure_threshold": 1}),
        ("retry", {"max_attempts": 1}),
        ("batch_queue", {"max_batch_size": 1}),
        ("server", {"api_key": "k"}),
        ("images", {"max_images": 1}),
    ],
)
def test_what_is_decided_in_the_parent_does_not(section: str, values: dict[str, Any]) -> None:
    done = plan(config(), config(**{section: values}))
    assert (done.fresh_worker, len(done.changed)) == (False, 1)


def test_models_come_and_go_by_name() -> None:
    done = plan(serving(A), serving(B))
    assert (names(done.added), names(done.removed), names(done.replaced)) == (["b"], ["a"], [])
    assert done.changed == ("models.default",)
    assert done.to_load == ("b",)


@pytest.mark.parametrize("change", [{"model": "org/other"}, {"revision": "main"}, {"context_length": 64}])
def test_a_model_of_another_version_is_replaced(change: dict[str, Any]) -> None:
    done = plan(serving(A, B), serving({**A, **change}, B))
    assert (names(done.added), names(done.removed), names(done.replaced)) == ([], [], ["a"])
    assert (done.changed, done.to_load, done.fresh_worker) == ((), (), False)


def test_an_order_is_no_version() -> None:
    assert plan(serving(A, B, default="a"), serving(B, A, default="a")).replaced == ()


def test_what_shall_be_in_memory_from_now_on_is_loaded() -> None:
    assert plan(serving(A, LAZY), serving(A, B)).to_load == ("b",)
    assert plan(serving(A, LAZY), serving(A, LAZY, default="b")).to_load == ("b",)
    assert plan(serving(A), serving(A, LAZY)).to_load == ()
    assert plan(serving(LAZY), serving(B)).to_load == ()  # the default was loaded already


def test_versions_that_could_not_be_loaded_are_wanted_again_the_next_time() -> None:
    old, new = serving(A, B), serving({**A, "revision": "1"}, {**B, "revision": "1"})
    done = without(plan(old, new), old, {"a"})
    assert names(done.replaced) == ["b"]
    assert [model.revision for model in done.config.models.served] == [None, "1"]
    assert names(plan(done.config, new).replaced) == ["a"]


def _some(port: int, key: str | None, models: list[dict[str, Any]], share: float) -> Config:
    return config(server={"port": port, "api_key": key}, models={"served": models}, memory={"share": share})


MODELS: list[dict[str, Any]] = [A, B, LAZY, {**A, "revision": "1"}]
CONFIGS = st.builds(
    _some,
    st.integers(0, 2),
    st.sampled_from([None, "k", "l"]),
    st.lists(st.sampled_from(MODELS), min_size=1, max_size=2, unique_by=lambda model: str(model["name"])),
    st.sampled_from([0.5, 0.6]),
)


@given(CONFIGS, CONFIGS)
def test_a_plan_that_was_carried_out_leaves_nothing_but_what_is_kept(old: Config, new: Config) -> None:
    done = plan(old, new)
    again = plan(done.config, new)
    assert again == Plan(done.config, kept=done.kept)
