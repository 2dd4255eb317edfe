"""Whether models may draft for each other, asked of a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ...tiny_models import VOCABULARY, make_llama, make_mamba, make_printable_llama
from ..driver import WorkerProcess


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """With `large` and `small` of one vocabulary, `words`, which has another one, and `mamba`, which cannot take tokens
    back."""
    folder = tmp_path_factory.mktemp("pairs")
    models = {
        "large": make_llama(_new(folder / "large"), layers=4),
        "small": make_llama(_new(folder / "small"), seed=1, layers=1),
        "words": make_printable_llama(_new(folder / "words")),
        "mamba": make_mamba(_new(folder / "mamba")),
    }
    with WorkerProcess.by_hand(folder / "cache") as worker:
        for name, directory in models.items():
            worker.call("load_model", model_id=name, local_path=str(directory))
        yield worker


def _new(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_a_report_has_true_values(worker: WorkerProcess) -> None:
    report = worker.call("check_draft", primary_id="large", draft_id="small")
    assert (report["compatible"], report["errors"], report["warnings"]) == (True, [], [])
    primary, draft = report["details"]["primary_model"], report["details"]["draft_model"]
    facts = worker.call("load_model", model_id="large", local_path=primary["id"])
    assert primary == {
        "id": "large",
        "vocab_size": facts["vocab_size"],
        "parameter_count": facts["parameter_count"],
        "architecture": "llama",
    }
    assert draft["id"] == "small"
    assert 0 < draft["parameter_count"] < primary["parameter_count"]
    ratio = draft["parameter_count"] / primary["parameter_count"]
    assert report["details"]["performance_estimate"]["size_ratio"] == f"{ratio:.1%}"


def test_other_vocabularies_do_not_pair(worker: WorkerProcess) -> None:
    report = worker.call("check_draft", primary_id="large", draft_id="words")
    assert report["compatible"] is False
    size, ids = report["errors"]
    assert size == f"The vocabularies differ in size: {VOCABULARY} and 512"
    assert ids.startswith("The vocabularies differ in ")


def test_a_model_whose_cache_cannot_be_cut_does_not_draft(worker: WorkerProcess) -> None:
    assert worker.call("check_draft", primary_id="large", draft_id="mamba")["errors"] == [
        "The draft model cannot take tokens back: it cannot draft"
    ]
    assert worker.call("check_draft", primary_id="mamba", draft_id="large")["errors"] == [
        "The primary model cannot take tokens back: nothing can be drafted for it"
    ]


def test_a_report_that_is_asked_for_again_has_the_names_of_now(worker: WorkerProcess) -> None:
    again = worker.call("check_draft", primary_id="small", draft_id="small")
    assert again["details"]["primary_model"]["id"] == again["details"]["draft_model"]["id"] == "small"
    assert worker.call("check_draft", primary_id="small", draft_id="small") == again


def test_checks_of_a_batch_are_answered_one_by_one(worker: WorkerProcess) -> None:
    requests = [
        {"primary_id": "large", "draft_id": "small"},
        {"primary_id": "large", "draft_id": "nobody"},
        {"primary_id": "large"},
    ]
    good, absent, bad = worker.call("batch_check_draft", requests=requests)["results"]
    assert good["success"] is True
    assert good["result"]["compatible"] is True
    assert (absent["success"], absent["error"]["type"]) == (False, "ModelNotLoaded")
    assert (bad["success"], bad["error"]["details"]["field"]) == (False, "draft_id")


def test_a_model_that_is_not_loaded_is_named(worker: WorkerProcess) -> None:
    assert worker.refusal("check_draft", primary_id="nobody", draft_id="small").details["model"] == "nobody"


def test_a_check_waits_for_a_model_that_is_being_loaded(worker: WorkerProcess, llama: Path) -> None:
    loading = worker.send("load_model", {"model_id": "late", "local_path": str(llama), "draft": True})
    checking = worker.send("check_draft", {"primary_id": "large", "draft_id": "late"})
    assert worker.answer_to(loading)["capabilities"]["draft"] is True
    assert worker.answer_to(checking)["details"]["draft_model"]["id"] == "late"


def test_a_model_that_is_to_draft_and_cannot_is_refused(worker: WorkerProcess, tmp_path: Path) -> None:
    other = make_mamba(tmp_path)
    for model_id in ("mamba", "other"):  # one that is loaded, and one that is not
        refused = worker.refusal("load_model", model_id=model_id, local_path=str(other), draft=True)
        assert refused.details == {"field": "draft", "given": True}
        assert f"{model_id} cannot draft" in refused.message
    loaded = [model["model_id"] for model in worker.call("runtime/state")["loaded_models"]]
    assert "other" not in loaded
