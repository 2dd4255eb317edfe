"""The verb `bench`: measure throughput and latency of the engine, its HTTP server, or any OpenAI-compatible one."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlx_serving.cli.bench_targets import add_target_arguments, choices_of, open_choice
from mlx_serving.cli.config_arguments import add_config_arguments
from mlx_serving.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_serving.bench.experiment import Plan
    from mlx_serving.bench.figures import Objectives
    from mlx_serving.bench.report import Report
    from mlx_serving.bench.workload import Load
    from mlx_serving.cli.bench_targets import Choice

EPILOG = """\
examples:
  mlx-serving bench throughput --concurrency 1 4 8
  mlx-serving bench latency --rate 0.5 1 2 --plot latency.png
  mlx-serving bench throughput --target server --compare http://127.0.0.1:8080 --markdown report.md
"""

_ACTIONS = {
    "throughput": (
        "tokens a second with N clients, each of which waits for its answer before it asks again (closed loop)",
        "mlx-serving bench throughput --target engine --concurrency 1 8 --prompt-tokens 128 --output-tokens 64",
    ),
    "latency": (
        "time to the first token, between tokens and of the whole answer, while requests arrive at random (open loop)",
        "mlx-serving bench latency --rate 0.5 1 2 --slo ttft=2000 tpot=200 --json latency.json",
    ),
}
_DEFAULT_CONCURRENCY = [8]
_DEFAULT_RATES = [1.0]
_ROUNDS_OF_A_COMPARISON = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="throughput|latency")
    for name, (summary, example) in _ACTIONS.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}\n\nThe exit status is 1 when requests failed.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_target_arguments(action)
        _add_load_arguments(action, name)
        _add_output_arguments(action)
        add_config_arguments(action)


def _add_load_arguments(action: argparse.ArgumentParser, name: str) -> None:
    group = action.add_argument_group("load")
    if name == "throughput":
        group.add_argument(
            "--concurrency",
            type=int,
            nargs="+",
            metavar="N",
            default=_DEFAULT_CONCURRENCY,
            help="clients at once; several numbers are measured one after the other (default: 8)",
        )
    else:
        group.add_argument(
            "--rate",
            type=float,
            nargs="+",
            metavar="R",
            default=_DEFAULT_RATES,
            help="requests a second on average; several are measured one after the other (default: 1)",
        )
    group.add_argument("--requests", type=int, default=32, metavar="N", help="requests in a round (default: 32)")
    group.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="tokens of a prompt (default: 128)")
    group.add_argument("--output-tokens", type=int, default=64, metavar="N", help="at most, of an answer (default: 64)")
    group.add_argument(
        "--sampling",
        choices=("greedy", "mixed", "sampled"),
        default="greedy",
        help="mixed: three requests in four with temperature, top-p and a frequency penalty (default: greedy)",
    )
    group.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions", help="default: completions"
    )
    group.add_argument("--rounds", type=int, metavar="N", help="default: 1, with --compare 5; targets take turns")
    group.add_argument(
        "--warmup", type=int, default=8, metavar="N", help="requests before, not counted; 0 measures cold (default: 8)"
    )
    group.add_argument(
        "--timeout-s", type=float, default=600.0, metavar="S", help="a request that takes longer fails (default: 600)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and arrivals (default: 0)")
    group.add_argument(
        "--slo",
        nargs="+",
        metavar="NAME=MS",
        help="what a good answer keeps, in ms: ttft, tpot, e2e; none of them with `none` (default: ttft=2000 tpot=200)",
    )


def _add_output_arguments(action: argparse.ArgumentParser) -> None:
    group = action.add_argument_group("report")
    group.add_argument("--json", metavar="FILE", help="write all figures as JSON; - prints them instead of the table")
    group.add_argument("--markdown", metavar="FILE", help="write a report; - prints it instead of the table")
    group.add_argument("--plot", metavar="FILE", help="write a picture (PNG); needs the extra `bench`")


def run(args: argparse.Namespace) -> int:
    from mlx_serving.bench.target import RequestFailed
    from mlx_serving.errors import EngineError

    _check_outputs(args)
    plan, choices = _plan_of(args), choices_of(args)
    import uvloop

    try:
        report = uvloop.run(_measure(args, plan, choices))
    except RequestFailed as error:  # of a request that had to succeed before anything could be measured
        raise EngineError(f"{error.message} ({error.code})") from None
    _write(report, args)
    return _tell_failures(report)


async def _measure(args: argparse.Namespace, plan: Plan, choices: list[Choice]) -> Report:
    from mlx_serving.bench.experiment import measure
    from mlx_serving.bench.machine_facts import machine_facts
    from mlx_serving.bench.report import report_of
    from mlx_serving.cli.progress import showing

    machine = machine_facts()
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(open_choice(choice, args)) for choice in choices]
        with showing("measuring") as show:
            measured = await measure(targets, plan, show)
        return report_of(args.action, machine, [target.about for target in targets], plan, measured)


def _plan_of(args: argparse.Namespace) -> Plan:
    """Raises `InvalidRequest` for a number out of range."""
    from mlx_serving.bench.experiment import Plan
    from mlx_serving.bench.workload import Closed, Endpoint, Open, Sampling, Workload

    rounds = cast("int | None", args.rounds)
    try:
        loads: list[Load]
        if args.action == "throughput":
            loads = [Closed(number) for number in cast("list[int]", args.concurrency)]
        else:
            loads = [Open(rate) for rate in cast("list[float]", args.rate)]
        return Plan(
            workload=Workload(
                requests=args.requests,
                prompt_tokens=args.prompt_tokens,
                output_tokens=args.output_tokens,
                sampling=Sampling(args.sampling),
                endpoint=Endpoint(args.endpoint),
                seed=args.seed,
            ),
            loads=tuple(dict.fromkeys(loads)),
            rounds=rounds if rounds is not None else _ROUNDS_OF_A_COMPARISON if args.compare else 1,
            warmup=args.warmup,
            timeout_s=args.timeout_s,
            objectives=_objectives_of(cast("list[str] | None", args.slo)),
        )
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _objectives_of(given: list[str] | None) -> Objectives:
    """Raises `InvalidRequest` for what is no NAME=MS, ValueError for a time that is none."""
    from mlx_serving.bench.figures import Objectives
    from mlx_serving.core.bounds import greater_than

    if given is None:
        return Objectives()
    objectives = Objectives(None, None, None)
    if given == ["none"]:
        return objectives
    for text in given:
        name, _, value = text.partition("=")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = None
        if name not in ("ttft", "tpot", "e2e") or milliseconds is None:
            raise InvalidRequest(f"--slo takes ttft=MS, tpot=MS and e2e=MS, got {text!r}", field="slo", given=text)
        greater_than(f"--slo: {name}", milliseconds, 0)
        changes: dict[str, Any] = {f"{name}_s": milliseconds / 1000}
        objectives = replace(objectives, **changes)
    return objectives


def _check_outputs(args: argparse.Namespace) -> None:
    """Better told now than after the measurement. Raises `InvalidRequest`."""
    files = {name: cast("str | None", getattr(args, name)) for name in ("json", "markdown", "plot")}
    if files["json"] == files["markdown"] == "-":
        raise InvalidRequest("--json - and --markdown - cannot both print", field="markdown")
    if files["plot"] is not None:
        from mlx_serving.bench.plot import require_matplotlib

        if files["plot"] == "-":
            raise InvalidRequest("--plot needs the name of a file, got '-'", field="plot", given="-")
        require_matplotlib()
    for name, file in files.items():
        if file is not None and file != "-" and not Path(file).absolute().parent.is_dir():
            raise InvalidRequest(f"--{name}: there is no directory {Path(file).parent}", field=name, given=file)
        if file is not None and Path(file).is_dir():
            raise InvalidRequest(f"--{name} needs the name of a file, got the directory {file}", field=name, given=file)


def _write(report: Report, args: argparse.Namespace) -> None:
    """Raises `InvalidRequest` when a file cannot be written; what could be is."""
    from mlx_serving.bench.markdown import as_markdown
    from mlx_serving.bench.plot import write_plot
    from mlx_serving.bench.report import as_json

    texts = {"json": lambda: json.dumps(as_json(report), indent=2), "markdown": lambda: as_markdown(report)}
    if "-" not in (args.json, args.markdown):
        _print_tables(report)
    name = ""
    try:
        for name, make in texts.items():
            file = cast("str | None", getattr(args, name))
            if file == "-":
                print(make())
            elif file is not None:
                Path(file).write_text(make() + "\n", encoding="utf-8")
        name = "plot"
        if args.plot is not None:
            write_plot(report, Path(args.plot))
    except OSError as error:
        raise InvalidRequest(f"--{name}: cannot be written: {error.strerror}", field=name) from None


def _print_tables(report: Report) -> None:
    from mlx_serving.bench.report import warmth
    from mlx_serving.bench.table import (
        HEADER,
        comparison_header,
        comparison_rows,
        draft_lines,
        objectives_text,
        result_rows,
    )
    from mlx_serving.cli.tables import print_table

    print_table(HEADER, list(result_rows(report)))
    print(f"{warmth(report.plan)}; good: {objectives_text(report.plan.objectives)}")
    for line in draft_lines(report):
        print(line)
    if report.comparisons:
        first, second = (target.name for target in report.targets)
        print(f"\n{first} / {second}, medians of the rounds and their range")
        print_table(comparison_header(report), list(comparison_rows(report)))


def _tell_failures(report: Report) -> int:
    failures, examples = report.failures(), report.failure_examples()
    for target, codes in failures.items():
        counted = ", ".join(f"{count} {code}" for code, count in codes.items())
        sys.stderr.write(f"mlx-serving: requests to {target} failed: {counted}\n")
    for code, message in examples.items():
        sys.stderr.write(f"  {code}: {message}\n")
    return 1 if failures else 0
