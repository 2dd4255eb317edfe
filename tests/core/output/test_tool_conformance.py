"""The recorded outputs of the conformance suite, read as `benchmarks/tool_conformance.py` does."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from canitoolcall.fixtures import load_families, load_fixtures
from canitoolcall.results import Status

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "tool_conformance.py"


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("tool_conformance", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_recorded_outputs_are_read_as_they_should_be() -> None:
    script = _script()
    families = load_families()
    counts: Counter[Status] = Counter(script.judge(one, families[one.family])[0] for one in load_fixtures())
    assert counts.total() == 469
    assert counts[Status.PASS] >= 456
    assert counts[Status.ERROR] == 0
