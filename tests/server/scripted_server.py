"""A program that serves a scripted engine: `python -m tests.server.scripted_server PORT DRAIN_TIMEOUT_S`, for test_run.

Streams hang after their text until a line comes on stdin. Prints the port, then the exit code of `serve`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mlx_serving.core.alias_table import AliasView
from mlx_serving.core.generation import ChatPrompt, Delta, FinishReason, GenerationRequest, GenerationStats
from mlx_serving.core.model_profile import NO_PROFILE, ModelProfile
from mlx_serving.core.serving import EngineTelemetry, HealthReport, ReuseStats, ServedModel, WorkerHealth
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.server.app import create_app
from mlx_serving.server.http.listening import ListenAddress
from mlx_serving.server.run import serve
from mlx_serving.server.settings import ServerSettings
from mlx_serving.telemetry import logs
from mlx_serving.wire.methods import TokenizeResult


class _HangingEngine:
    def __init__(self, go_on: asyncio.Event) -> None:
        self._go_on = go_on

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        yield self._deltas()

    async def _deltas(self) -> AsyncIterator[Delta]:
        yield Delta("Hello", (1,))
        await self._go_on.wait()
        yield Delta("", (), FinishReason.STOP, GenerationStats(1, 1, 0.1, 1.0, 0.1))

    def served_models(self) -> Sequence[ServedModel]:
        return [ServedModel("tiny", "tiny", 0, "ready", default=True)]

    async def health(self) -> HealthReport:
        return HealthReport("healthy", 0.0, 0, ("tiny",), (WorkerHealth("ready", 0.0),))

    async def tokenize(self, name: str, text: str, *, add_special_tokens: bool = True) -> TokenizeResult:
        raise NotImplementedError

    async def tokenize_chat(self, name: str, prompt: ChatPrompt) -> TokenizeResult:
        raise NotImplementedError

    async def detokenize(self, name: str, token_ids: Sequence[int]) -> str:
        raise NotImplementedError

    def reuse(self) -> ReuseStats:
        raise NotImplementedError

    async def clear_responses(self) -> int:
        raise NotImplementedError

    async def restart_workers(self) -> None:
        raise NotImplementedError

    def progress(self) -> int:
        return 0

    async def telemetry(self) -> EngineTelemetry:
        raise NotImplementedError

    async def load_served(
        self,
        reference: str,
        *,
        name: str | None,
        revision: str | None,
        replace: bool = False,
        weights: WeightOptions | None = None,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> ServedModel:
        raise NotImplementedError

    def list_aliases(self) -> list[AliasView]:
        raise NotImplementedError

    async def set_alias(
        self, name: str, model: str, *, revision: str | None = None, profile: ModelProfile = NO_PROFILE
    ) -> AliasView:
        raise NotImplementedError

    async def roll_back_alias(self, name: str) -> AliasView | None:
        raise NotImplementedError

    def remove_alias(self, name: str) -> None:
        raise NotImplementedError

    async def unload_served(self, name: str, *, force: bool) -> None:
        raise NotImplementedError


def _started(addresses: Sequence[ListenAddress]) -> None:
    sys.stdout.write(f"{addresses[0].port}\n")
    sys.stdout.flush()


async def main(port: int, drain_timeout_s: float) -> int:
    go_on = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, go_on.set)
    logs.configure("info", "json")
    app = create_app(_HangingEngine(go_on), ServerSettings(drain_timeout_s=drain_timeout_s))
    return await serve(app, "127.0.0.1", port, on_started=_started)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]))))
