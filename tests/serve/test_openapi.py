"""The OpenAPI document, and requests that schemathesis makes from it."""

import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from tests.running_server import RunningServer

ROUTES = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/images/generations"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
}


@pytest.fixture
def document(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_document_names_every_route(http: httpx2.Client):
    paths = http.get("/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == ROUTES


def test_the_page_of_the_document_needs_no_internet(http: httpx2.Client):
    page = http.get("/docs")
    assert page.status_code == 200
    assert not re.search(r"https?:|[\"'(]//", page.text)
    loaded = {
        address: http.get(f"/{address}") for address in re.findall(r"(?:src|href|url)[=:] *[\"']([^\"']+)", page.text)
    }
    assert {Path(address).suffix for address in loaded} == {".js", ".css", ".png", ".json"}
    assert all(response.status_code == 200 for response in loaded.values())
    assert "default-src 'self'" in page.headers["content-security-policy"], "scripts cannot load anything else either"


@pytest.mark.parametrize("name", ["redoc.standalone.js", "../__init__.py", "%2e%2e/__init__.py", "%00"])
def test_other_files_beside_the_page_are_not_served(http: httpx2.Client, name: str):
    assert http.get(f"/docs/{name}").status_code == 404


def test_errors_are_documented_in_their_real_shape(http: httpx2.Client):
    document = http.get("/openapi.json").json()
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "500"} <= set(answers)
    assert "422" not in answers
    schema = answers["400"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


def test_no_request_of_the_document_is_a_server_error(document: Any):
    """Some hundred requests, valid and not, in a fixed order."""
    statuses: list[int] = []

    for found in document.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body["max_tokens" if "max_output_tokens" not in case.body else "max_output_tokens"] = 4
            response = case.call(timeout=120)
            statuses.append(response.status_code)
            case.validate_response(response, checks=[not_a_server_error])

        check()
    assert len(statuses) > 30
    assert 200 in statuses
