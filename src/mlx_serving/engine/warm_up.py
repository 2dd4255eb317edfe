"""A few tokens that nobody asked for, before the first who asks gets the model.

They pay for what a first request would: kernels that are compiled or found, the tokenizer's tables, the template, the
buffers of a first prompt.
"""

from __future__ import annotations

import asyncio

from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.wire.notifications import Failed, Row

_TOKENS = 3  # the first comes with the prompt, the second begins the decoding, the third goes on with it
_TEXT = "Hello"


async def warm_up(client: WorkerClient, facts: methods.LoadModelResult) -> None:
    """Returns when they are there. Raises what they failed with; `WorkerDied` when the worker was lost meanwhile."""
    if facts.embedding is not None:
        return  # loading it has computed some
    stream_id = f"warm-up {facts.model_id}"[:256]
    ended: asyncio.Future[Row] = asyncio.get_running_loop().create_future()

    def on_row(row: Row) -> None:
        if row.end is not None and not ended.done():
            ended.set_result(row)

    client.open_stream(stream_id, on_row, unasked=True)
    losing = asyncio.create_task(client.wait_lost())
    try:
        params = methods.GenerateParams(
            model_id=facts.model_id,
            stream_id=stream_id,
            prompt=None if facts.has_chat_template else _TEXT,
            messages=[{"role": "user", "content": _TEXT}] if facts.has_chat_template else None,
            max_tokens=_TOKENS,
            ignore_eos=True,
            temperature=0.0,
        )
        await client.call(methods.GENERATE, params)
        await asyncio.wait((ended, losing), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            raise losing.result()
    finally:
        losing.cancel()
        client.close_stream(stream_id)
    if isinstance(end := ended.result().end, Failed):
        raise jsonrpc.to_engine_error(end.error)
