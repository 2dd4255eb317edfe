"""The verb `pull`: download or convert a model, bring it up to date, and verify it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from mlx_serving.cli.tables import bytes_text

EPILOG = """\
examples:
  mlx-serving pull mlx-community/Qwen3-4B-4bit
  mlx-serving pull mlx-community/Qwen3-4B-4bit --revision main --json

A download that was interrupted goes on where it was. Files that are damaged are named and fetched anew.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="hub id, alias, GGUF file or directory")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit at the hub")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from mlx_serving.cli.progress import pull_showing

    pulled = asyncio.run(pull_showing(args.model, args.revision))
    if pulled.outdated_reason is not None:
        sys.stderr.write(f"what is here was verified, but not whether it is the newest: {pulled.outdated_reason}\n")
    verdict = pulled.verdict
    if args.json:
        document = {
            "model": args.model,
            "path": str(pulled.path),
            "files": verdict.files,
            "size_bytes": verdict.size_bytes,
            "compared_digests": verdict.digests,
            "repaired": [{"file": damage.file.name, "reason": damage.reason} for damage in pulled.repaired],
            "up_to_date": pulled.outdated_reason is None,
        }
        print(json.dumps(document, indent=2))
        return 0
    for damage in pulled.repaired:
        print(f"repaired: {damage}")
    print(f"{args.model}: {verdict.files} files, {bytes_text(verdict.size_bytes)}, verified")
    print(pulled.path)
    return 0
