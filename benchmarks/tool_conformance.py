"""Which of the recorded outputs of the conformance suite `canitoolcall` are read as they should be.

    python benchmarks/tool_conformance.py [--family NAME] [--failures]

Each output is read whole and cut into pieces in many ways, by characters, which is harder than by tokens; the suite's
own checks judge what comes out. `soft` differs from what is expected in white space only.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from canitoolcall.checks import case_status, run_checks
from canitoolcall.chunking import ChunkStrategy, split_text
from canitoolcall.fixtures import Family, Fixture, load_families, load_fixtures
from canitoolcall.results import Observation, ParseResult, Status, StreamAccumulator

from mlx_serving.core.output.output_formats import HARMONY, output_format
from mlx_serving.core.output.output_parser import OutputFormat, OutputParser, opens_thought

_STREAMS = ("one", "char:0", *(f"char:{seed}" for seed in range(1, 7)))


def _styles(fixture: Fixture) -> tuple[str, str | None]:
    """The names of the styles for tools and for reasoning that fit the model of a fixture."""
    model = fixture.reference_model
    match fixture.family:
        case "qwen3-hermes":
            return "json_tools", "think"
        case "qwen3-xml":
            return "qwen3_coder", "think"
        case "glm":
            return "glm47", "think"
        case "kimi":
            return ("kimi_k3", "kimi_k3") if "K3" in model else ("kimi_k2", "think")
        case "deepseek":
            return ("deepseek_v3" if model.endswith(("V3-0324", "V3.1")) else "deepseek_v32"), "think"
        case "gpt-oss":
            return HARMONY, HARMONY
        case "llama":
            return "llama", None
        case family:
            return family, family


def _parse(fixture: Fixture, family: Family, output: OutputFormat, pieces: Sequence[str]) -> ParseResult:
    model = family.reference_for(fixture.reference_model)
    prompt = fixture.generation_prompt
    if prompt is None:
        prompt = (model.default_generation_prompt if model else None) or ""
    gathered = StreamAccumulator()
    try:
        parser = OutputParser(output, fixture.id, tools=fixture.tools, thinking=opens_thought(prompt, output))
        for parts in (*map(parser.feed, pieces), parser.finish()):
            gathered.add_content(parts.text)
            gathered.add_reasoning(parts.reasoning)
            for call in parts.tool_calls:
                gathered.add_tool_call(call.index, call.name, call.arguments)
    except Exception as error:  # noqa: BLE001  the suite judges it
        return gathered.result(f"{type(error).__name__}: {error}")
    return gathered.result()


def judge(fixture: Fixture, family: Family) -> tuple[Status, list[str]]:
    tools, think = _styles(fixture)
    output = output_format(tools, think)
    streams = {
        "one" if name == "one" else f"rand:{number}:8": _parse(
            fixture,
            family,
            output,
            [fixture.raw_output] if name == "one" else split_text(fixture.raw_output, ChunkStrategy.parse(name)),
        )
        for number, name in enumerate(_STREAMS)
    }
    rows = run_checks(fixture, family, Observation(_parse(fixture, family, output, [fixture.raw_output]), streams))
    wrong = [f"{row.check} {row.strategy}: {row.detail}" for row in rows if row.status is not Status.PASS]
    return case_status(rows), wrong


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--family", help="only this one")
    arguments.add_argument("--failures", action="store_true", help="tell what is wrong with each that does not pass")
    chosen = arguments.parse_args()
    families = load_families()
    figures: dict[str, Counter[Status]] = {}
    for fixture in load_fixtures(families=[chosen.family] if chosen.family else None):
        status, wrong = judge(fixture, families[fixture.family])
        figures.setdefault(fixture.family, Counter())[status] += 1
        if chosen.failures and wrong:
            print(f"{status.value} {fixture.id}\n    {wrong[0]}")
    print("| family | outputs | pass | soft | fail |\n|---|---|---|---|---|")
    for family, counts in sorted(figures.items()):
        _print_row(family, counts)
    _print_row("all", sum(figures.values(), Counter[Status]()))


def _print_row(name: str, counts: Counter[Status]) -> None:
    failed = counts[Status.FAIL] + counts[Status.ERROR]
    print(f"| {name} | {counts.total()} | {counts[Status.PASS]} | {counts[Status.SOFT_PASS]} | {failed} |")


if __name__ == "__main__":
    main()
