"""Whatever arrives between two good requests, both are served."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .driver import WorkerProcess

_serial = itertools.count()

_BYTES = st.binary(max_size=200)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_METHODS = st.sampled_from(["generate", "tokenize", "detokenize", "batch_tokenize", "abort", "load_model", "nothing"])
_NAMES = st.sampled_from(["model_id", "prompt", "messages", "text", "tokens", "requests", "stream_id", "max_tokens"])


def _request(method: str, params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": "junk", "method": method, "params": params}).encode()


_REQUESTS = st.builds(_request, _METHODS, _JSON | st.dictionaries(_NAMES, _JSON, max_size=4))


@given(junk=st.lists(_BYTES | _REQUESTS, min_size=1, max_size=5))
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_junk_never_poisons_what_follows(worker: WorkerProcess, speller: Path, junk: list[bytes]) -> None:
    stream = f"good-{next(_serial)}"
    worker.generate(model_id=str(speller), prompt="a", max_tokens=8, stream_id=stream)
    worker.send_bytes(b"\n".join(junk) + b"\n")
    assert worker.call("tokenize", model_id=str(speller), text="a")["tokens"]
    assert worker.text(stream) == "bcdefghi"


def test_a_request_that_arrives_byte_by_byte_is_one_request(worker: WorkerProcess) -> None:
    for byte in b'{"jsonrpc":"2.0","id":"slow","method":"runtime/state"}\r\n':
        worker.send_bytes(bytes([byte]))
    assert worker.answer_to("slow")["active_streams"] == 0
