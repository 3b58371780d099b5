"""A public tool asks what the server's own schema allows, and more: nothing ends in a 500, every error is JSON."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATHS = ["/v1/audio/speech", "/v1/audio/transcriptions", "/v1/chat/completions"]


@pytest.fixture(scope="module")
def operations(address: str) -> dict[str, Any]:
    """By path, with the one model that is here, since another name is refused before all else."""
    raw = httpx.get(f"{address}/openapi.json").json()
    for body in raw["components"]["schemas"].values():
        if "model" in body.get("properties", {}):
            body["properties"]["model"] = {"type": "string", "enum": ["nano"]}
    schema = schemathesis.openapi.from_dict(raw)
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.path: operation for operation in found}


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_the_schema_allows_is_answered_or_refused_in_json(
    address: str, operations: dict[str, Any], path: str, data: st.DataObject
) -> None:
    response = data.draw(operations[path].as_strategy()).call(base_url=address, timeout=60)
    assert response.status_code < 500
    if response.status_code >= 400:
        assert response.json()["error"]["message"]
