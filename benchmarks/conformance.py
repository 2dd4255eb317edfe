"""Requests that schemathesis makes up from our own description, against a real server with a real worker.

    python benchmarks/conformance.py                    # some thousands of requests, a few minutes
    python benchmarks/conformance.py --examples 20      # a look
    python benchmarks/conformance.py --embeddings       # with a model that makes embeddings and cannot chat

Ends with 1 if an answer is a 5xx, or another one than /openapi.json promises. All of schemathesis' checks are on but
one: not all that is refused can be said in a schema, such as numbers that depend on each other. Left out are the
requests of an operator that would take the model away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import tiny_model

_LEFT_OUT = "^/admin/(models|workers|reload)"


async def measure(examples: int, seed: int, scratch: Path, *, embeddings: bool) -> int:
    key = secrets.token_hex(16)
    config = {
        "models": {
            "served": [
                {"model": str(tiny_model(scratch)), "name": "tiny", **({"pooling": "mean"} if embeddings else {})}
            ]
        },
        "generation": {"max_tokens": 16, "max_tokens_limit": 16},
        "server": {"api_key": key, "admin_key": key},
        "logging": {"level": "error"},
    }
    file = scratch / "mlx-serving.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    file.chmod(0o600)
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mlx_serving", "serve", "--port", "0", "--json", "--config", str(file)),
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        url = json.loads(await server.stdout.readline())["url"]
        tester = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", "all"),
            *("--exclude-checks", "positive_data_acceptance", "--exclude-path-regex", _LEFT_OUT),
            *("--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure"),
            *("--suppress-health-check", "all", "--header", f"Authorization: Bearer {key}"),
            *("--generation-database", "none", "--request-timeout", "60", "--warnings", "off"),
            cwd=scratch,
        )
        return await tester.wait()
    finally:
        server.terminate()
        await server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=300, help="requests to each operation in each phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--embeddings", action="store_true", help="serve a model that makes embeddings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(
            asyncio.run(measure(arguments.examples, arguments.seed, Path(scratch), embeddings=arguments.embeddings))
        )


if __name__ == "__main__":
    main()
