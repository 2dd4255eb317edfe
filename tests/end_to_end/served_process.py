"""A real `mlx-serving serve`, started by a test, and the ways to look at it from outside."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI

from ..command_line import LIMIT_S, PREPARING_LIMIT_S, command, environment


class ServedProcess:
    """`url` is where it listens, `log` what it has logged so far: one object a line."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, keys: Mapping[str, str]) -> None:
        self._process = process
        self._keys = keys
        self.url = url
        self.log: list[dict[str, Any]] = []
        self._logged = asyncio.Event()
        self._reading = asyncio.create_task(self._read_log())

    @property
    def pid(self) -> int:
        return self._process.pid

    def http(self, key: str = "api_key") -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {self._keys[key]}"} if key in self._keys else {}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=LIMIT_S)

    def openai(self, key: str = "api_key") -> AsyncOpenAI:
        """OpenAI's own client, which fails at the first failure."""
        secret = self._keys.get(key, "none")
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0, timeout=LIMIT_S)

    async def health(self) -> dict[str, Any]:
        async with self.http() as http:
            return (await http.get("/health")).json()

    async def healthy_when(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first health report that meets the condition."""
        async with self.http() as http, asyncio.timeout(LIMIT_S):
            while not condition(report := (await http.get("/health")).json()):
                pass  # every answer takes a round trip, which is wait enough
        return report

    async def logged(self, event: str, **facts: object) -> dict[str, Any]:
        """The first line of the log about that event with those facts, when it has come."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                for line in self.log:
                    if line["event"] == event and facts.items() <= line.items():
                        return line
                self._logged.clear()
                await self._logged.wait()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, negative for a signal."""
        async with asyncio.timeout(LIMIT_S):
            await self._reading
            return await self._process.wait()

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await self.ended()
        except TimeoutError:
            self._process.kill()
            raise

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.log.append(json.loads(line))  # at a pipe every line is for a program
            self._logged.set()


@asynccontextmanager
async def serving(
    home: Path, *arguments: str, keys: Mapping[str, str] | None = None, config: Mapping[str, object] | None = None
) -> AsyncGenerator[ServedProcess]:
    """Serve on a free port until the block ends, from the empty directory `home`.

    `keys` are `api_key`, `admin_key` and any others that the configuration has by their hashes, `config` is the content
    of the configuration file.
    """
    keys = keys or {}
    if config is not None:
        (home / "mlx-serving.yaml").write_text(json.dumps(config))  # JSON is YAML
    secrets = {f"MLX_SERVING_SERVER__{name.upper()}": keys[name] for name in ("api_key", "admin_key") if name in keys}
    process = await asyncio.create_subprocess_exec(
        *command("serve", "--port", "0", "--json", *arguments),
        cwd=home,
        env={**environment(home), **secrets},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert process.stdout is not None
    served = ServedProcess(process, "", keys)
    try:
        async with asyncio.timeout(PREPARING_LIMIT_S):
            told = await process.stdout.readline()
        assert told, f"it ended before it served: {served.log}"
        served.url = json.loads(told)["url"]
        yield served
    finally:
        await served.close()
