"""What transformers exports is found out once, and is the same from then on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.worker.exports import Exports, remembering

EXPORTS: Exports = {frozenset(): {"a.b": {"One", "Two"}}, frozenset({"torch", "vision"}): {"c": {"Three"}}}
STRANGE: list[Any] = [
    {frozenset(): {"a": ["One"]}},
    {frozenset(): {"a": {1: 2}}},
    {frozenset(): ["a"]},
    {(): {"a": {"One"}}},
    ["a"],
    None,
]
LOOK = """
import sys
from pathlib import Path
from mlx_serving.worker import exports
if len(sys.argv) > 1:
    exports.remember(Path(sys.argv[1]))
import transformers, transformers.models
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.llama import LlamaConfig
print(sorted(dir(transformers)), sorted(dir(transformers.models)))
"""


class Learner:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []

    def __call__(self, module_path: str | Path, prefix: str | None = None) -> Exports:
        self.calls.append((str(module_path), prefix))
        return {
            needed: {f"{prefix}{name}": set(names) for name, names in EXPORTS[needed].items()} for needed in EXPORTS
        }


def test_what_was_learned_is_known_to_the_next_start(tmp_path: Path) -> None:
    first = Learner()
    learned = remembering(first, tmp_path / "exports", "1")
    expected = [learned("/models"), learned(Path("/models"), "m."), learned("/quantizers")]
    assert first.calls == [("/models", None), ("/models", "m."), ("/quantizers", None)]
    second = Learner()
    known = remembering(second, tmp_path / "exports", "1")
    assert [known("/models"), known("/models", prefix="m."), known(Path("/quantizers"))] == expected
    assert second.calls == []


def test_whoever_is_given_it_may_change_it(tmp_path: Path) -> None:
    known = remembering(Learner(), tmp_path, "1")
    known("/models")[frozenset()]["more"] = {"Four"}
    known("/models")[frozenset()]["more"] = {"Four"}
    assert "more" not in known("/models")[frozenset()]


def test_another_version_is_learned_anew(tmp_path: Path) -> None:
    remembering(Learner(), tmp_path, "1")("/models")
    for calls in (1, 0):
        other = Learner()
        remembering(other, tmp_path, "2")("/models")
        assert len(other.calls) == calls


def damages(content: str) -> list[str]:
    shapes: list[Any] = [3, [3], [[["torch"], []]], [[["torch"], {"a": 3}]], [[[[]], {}]]]
    others = [json.dumps({"version": "1", "exports": exports}) for exports in shapes]
    return ["", content[: len(content) // 2], "[]", "{}", "null", *others]


def test_what_is_not_what_was_written_is_learned_anew(tmp_path: Path) -> None:
    expected = remembering(Learner(), tmp_path, "1")("/models")
    [file] = tmp_path.iterdir()
    for damaged in damages(file.read_text()):
        file.write_text(damaged)
        learner = Learner()
        assert remembering(learner, tmp_path, "1")("/models") == expected
        assert len(learner.calls) == 1
    mended = Learner()
    assert remembering(mended, tmp_path, "1")("/models") == expected
    assert mended.calls == []
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("strange", STRANGE)
def test_what_would_not_be_read_as_the_same_is_not_kept(tmp_path: Path, strange: Any) -> None:
    def learn(module_path: str | Path, prefix: str | None = None) -> Exports:
        return strange

    assert remembering(learn, tmp_path, "1")("/models") is strange
    assert [*tmp_path.iterdir()] == []


def test_without_a_folder_it_is_learned_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    learner = Learner()
    nowhere = remembering(learner, tmp_path / "file" / "exports", "1")
    assert nowhere("/models") == nowhere("/models") == Learner()("/models")
    assert len(learner.calls) == 2


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    remembering(Learner(), tmp_path, "1")("/models")
    [file] = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    learner = Learner()
    assert remembering(learner, tmp_path, "1")("/models") == Learner()("/models")
    assert len(learner.calls) == 1
    assert [*tmp_path.iterdir()] == [file]


def look(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_is_as_it_is_without(tmp_path: Path) -> None:
    without = look()
    assert look(str(tmp_path)) == without
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert written
    assert look(str(tmp_path)) == without
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == written
