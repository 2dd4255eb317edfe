from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import httpx2
import pytest

from mlx_serving.server.app import create_app
from mlx_serving.server.json_values import as_array, as_object
from mlx_serving.server.settings import ServerSettings

from .scripted_engine import ScriptedEngine

DOCUMENT = create_app(ScriptedEngine(), ServerSettings()).openapi()


def _references(tree: object) -> Iterator[str]:
    for key, value in (as_object(tree) or {}).items():
        if key == "$ref":
            yield str(value)
        else:
            yield from _references(value)
    for value in as_array(tree) or []:
        yield from _references(value)


async def test_it_is_served(http: httpx2.AsyncClient) -> None:
    response = await http.get("/openapi.json")
    assert response.status_code == 200
    assert response.json()["openapi"].startswith("3.")


def test_every_reference_leads_somewhere() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    references = set(_references(DOCUMENT))
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= schemas.keys()


@pytest.mark.parametrize(
    ("path", "method", "schema"),
    [
        ("/v1/chat/completions", "post", "ChatCompletionRequest"),
        ("/v1/completions", "post", "CompletionRequest"),
        ("/admin/models/load", "post", "LoadModelRequest"),
        ("/admin/models/unload", "post", "UnloadModelRequest"),
    ],
)
def test_request_bodies_are_described(path: str, method: str, schema: str) -> None:
    body = DOCUMENT["paths"][path][method]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{schema}"}
    assert DOCUMENT["components"]["schemas"][schema]["additionalProperties"] is False


def test_errors_are_described_in_the_shape_that_is_sent() -> None:
    responses = DOCUMENT["paths"]["/v1/chat/completions"]["post"]["responses"]
    for status in ("400", "401", "404", "408", "413", "500", "503", "504"):
        assert responses[status]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorDocument")
    assert "text/event-stream" in responses["200"]["content"]


def test_the_error_shape_of_fastapi_is_promised_nowhere() -> None:
    assert "HTTPValidationError" not in DOCUMENT["components"]["schemas"]
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"]


async def test_a_wrong_method_is_told_every_right_one(http: httpx2.AsyncClient) -> None:
    response = await http.put("/v1/responses/resp_x")
    assert response.status_code == 405
    assert response.headers["allow"] == "DELETE, GET"
    assert (await http.delete("/v1/models/org/other")).headers["allow"] == "GET"


def test_every_endpoint_has_a_summary() -> None:
    assert set(DOCUMENT["paths"]) == {
        "/admin/aliases",
        "/admin/aliases/{name}",
        "/admin/aliases/{name}/rollback",
        "/admin/cache",
        "/admin/cache/clear",
        "/admin/models",
        "/admin/models/load",
        "/admin/models/unload",
        "/admin/reload",
        "/admin/telemetry",
        "/admin/workers/restart",
        "/detokenize",
        "/health",
        "/health/live",
        "/health/ready",
        "/tokenize",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/input_items",
        "/v1/rerank",
        "/v1/resumed/{completion_id}",
        "/v1/score",
        "/version",
    }
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            assert operation["summary"]


def test_the_server_imports_no_mlx() -> None:
    code = (
        "import sys, mlx_serving.server.run;"
        "sys.exit(bool({'mlx', 'mlx_lm', 'mlx_vlm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
