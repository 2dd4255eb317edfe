"""Models that draft for others, on the command line: served beside them, and compared with them."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_serving.config.schema import Config
    from mlx_serving.core.speculation.report import CompatibilityReport


def add_draft_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draft-model",
        metavar="MODEL",
        help="smaller model of the same vocabulary that goes ahead: a served name, or what --model takes; the answer "
        "is the same",
    )


def serving_draft(config: Config, reference: str | None) -> tuple[Config, str | None]:
    """The configuration with a draft model among the served ones, and its name."""
    from mlx_serving.config.model_entries import ServedModel
    from mlx_serving.config.model_names import public_name

    if reference is None:
        return config, None
    models = config.models
    names = [*(each.name for each in models.served), *(alias.name for alias in models.aliases)]
    if reference in names:
        return config, reference
    for each in models.served:
        if each.model == reference:
            return config, each.name
    name = public_name(reference)
    name = f"{name}:draft" if name in names else name
    served = (*models.served, ServedModel(model=reference, name=name))
    return config.model_copy(update={"models": models.model_copy(update={"served": served})}), name


def drafting_by_default(config: Config, reference: str | None) -> Config:
    """The configuration with a draft model that drafts for the default model where a request is silent."""
    config, draft = serving_draft(config, reference)
    if draft is None:
        return config
    models = config.models
    for section in ("aliases", "served"):
        entries = getattr(models, section)
        if any(each.name == models.default for each in entries):
            changed = tuple(
                each.model_copy(update={"profile": each.profile.model_copy(update={"draft_model": draft})})
                if each.name == models.default
                else each
                for each in entries
            )
            return config.model_copy(update={"models": models.model_copy(update={section: changed})})
    return config


def check_draft(primary: str, draft: str, *, as_json: bool) -> int:
    """Print the report; 1 if the models do not fit."""
    report = asyncio.run(_compared(primary, draft))
    if as_json:
        import msgspec

        print(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        _print(report)
    return 0 if report.compatible else 1


async def _compared(primary: str, draft: str) -> CompatibilityReport:
    from mlx_serving import assembly
    from mlx_serving.cli.progress import prepare_showing, showing_loads
    from mlx_serving.config.schema import Config

    references = {"primary": primary, "draft": draft}
    for reference in references.values():
        await prepare_showing(reference, None)
    served = [
        {"model": reference, "name": name, "preload": False, "warm_up": False} for name, reference in references.items()
    ]
    core = assembly.build(Config.model_validate({"models": {"served": served}}))
    try:
        with showing_loads(core.events):
            return (await core.check_draft("primary", "draft")).called(primary, draft)
    finally:
        await core.stop()


def _print(report: CompatibilityReport) -> None:
    from mlx_serving.cli.tables import print_pairs, print_table

    models = (report.details.primary_model, report.details.draft_model)
    print_table(
        ("", "model", "architecture", "parameters", "vocabulary"),
        [
            (role, each.id, each.architecture, each.parameter_count, each.vocab_size)
            for role, each in zip(("primary", "draft"), models, strict=True)
        ],
    )
    for text in report.errors:
        print(f"error: {text}")
    for text in report.warnings:
        print(f"warning: {text}")
    estimate = report.details.performance_estimate
    print_pairs(
        {
            "compatible": report.compatible,
            "size ratio": estimate.size_ratio,
            "expected speed-up": estimate.expected_speedup,
            "recommendation": estimate.recommendation,
        }
    )
