"""`vila-serve contract`: our server keeps every point, and servers that do not are told so."""

import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.running_server import RunningServer, running

from vila_serve.cli import main
from vila_serve.contract.checks import CHECKS
from vila_serve.contract.run import run_contract


def test_our_server_keeps_the_contract(server: RunningServer):
    outcomes = list(run_contract(f"{server.url}/v1"))
    assert len(outcomes) == len(CHECKS) >= 25
    assert {outcome.name: outcome.problem for outcome in outcomes if outcome.problem} == {}


def broken(kind: str) -> Starlette:
    """Return a server that is wrong in one way."""

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "other"}]})

    async def chat(request: Request) -> Response:
        if kind == "html":
            return Response("<h1>Bad gateway</h1>", 502, media_type="text/html")
        if kind == "list as content":  # as VILA's own server
            message = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}
            return JSONResponse({"id": "1", "object": "chat.completion", "choices": [{"message": message}]})
        return JSONResponse([])

    return Starlette(routes=[Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])])


@pytest.mark.parametrize("kind", ["html", "list as content", "empty"])
def test_a_broken_server_fails_check_by_check(kind: str):
    with running(broken(kind)) as server:
        outcomes = list(run_contract(f"{server.url}/v1", timeout=120))
    failed = [outcome for outcome in outcomes if outcome.problem]
    assert len(failed) > 20
    assert all("\n" not in outcome.problem for outcome in failed)


def test_the_program_prints_a_table(server: RunningServer, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vila_serve.contract.run.CHECKS", CHECKS[:3])
    with pytest.raises(SystemExit) as ended:
        main(["contract", "--base-url", f"{server.url}/v1"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "GET /models lists the model" in printed
    assert "3 of 3 checks passed." in printed
    with pytest.raises(SystemExit):
        main(["contract", "--base-url", f"{server.url}/v1", "--json"])
    assert json.loads(capsys.readouterr().out)["passed"] is True


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "expected an address such as http://localhost:8000/v1"),
        ("http://127.0.0.1:9/v1", "There is no server at http://127.0.0.1:9/v1"),
        ("http://no.such.host.invalid/v1", "There is no server at"),
    ],
)
def test_a_server_that_is_not_there(url: str, message: str, capsys: Any):
    with pytest.raises(SystemExit) as ended:
        main(["contract", "--base-url", url])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_address_that_is_not_complete(server: RunningServer, capsys: Any):
    with pytest.raises(SystemExit) as ended:
        main(["contract", "--base-url", server.url])
    assert ended.value.code == 2
    assert "often it ends in /v1" in capsys.readouterr().err
