"""The chat page in front of several replicas: the front serves it, and a replica answers its questions."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp
from tests.page.conftest import API, MEDIA, PageClient, streamed
from tests.running_server import RunningServer, running

import vila_core
from vila_serve.affinity import affinity_key
from vila_serve.api.app import create_app
from vila_serve.page.question import Choices, PageModel, Question, Shown
from vila_serve.page.texts import ENGLISH
from vila_serve.page.turn import Turns
from vila_serve.replicas.front import ReplicaDiedError, ReplicasFullError, create_front
from vila_serve.replicas.messages import HttpRequest, ResponseStart
from vila_serve.replicas.page import ReplicaAnswers, with_page
from vila_serve.settings import ServeSettings

CHOICES = Choices(None, 8, 0, 1, None, 8, None)
MODEL = PageModel("vila-tiny", 2048, 8, has_system_prompt=True)
HELLO: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
Script = list[Shown | Exception]


class ScriptedReplicas:
    """Answers each question of the page with the next script; an exception in it is raised."""

    def __init__(self, *scripts: Script):
        self.scripts = list(scripts)
        self.questions: list[Question] = []
        self.closed = 0

    async def ask(self, question: Question) -> AsyncGenerator[Shown]:
        self.questions.append(question)
        try:
            for part in self.scripts.pop(0):
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.closed += 1

    async def answer(self, request: HttpRequest) -> AsyncGenerator[ResponseStart | bytes]:
        yield ResponseStart(200, ((b"content-type", b"application/json"),))
        yield request.path.encode()

    async def metrics(self) -> dict[str, str]:
        return {}


def shown_by(replicas: ScriptedReplicas, *turns: dict[str, Any], max_bytes: int = 10_000) -> list[Shown]:
    async def collect() -> list[Shown]:
        answers = ReplicaAnswers(replicas.ask, max_bytes=max_bytes)
        return [one async for one in answers.answer(Question([*turns], CHOICES, "en"))]

    return asyncio.run(collect())


def test_what_a_replica_answers_is_shown():
    replicas = ScriptedReplicas([Shown(status="reads"), Shown(("a cat",))])
    assert shown_by(replicas, HELLO) == [Shown(status="reads"), Shown(("a cat",))]
    assert replicas.closed == 1


def test_a_question_whose_replica_dies_goes_to_another_one():
    replicas = ScriptedReplicas([Shown(("a c",)), ReplicaDiedError()], [ReplicaDiedError()], [Shown(("a dog",))])
    assert shown_by(replicas, HELLO) == [Shown(("a c",)), Shown(("a dog",))]
    assert len(replicas.questions) == 3


def test_a_question_that_kills_replicas_is_given_up():
    replicas = ScriptedReplicas([ReplicaDiedError()], [ReplicaDiedError()], [ReplicaDiedError()])
    (only,) = shown_by(replicas, HELLO)
    assert only.error is not None
    assert only.error.startswith(ENGLISH.failed.partition("{")[0])


def test_full_replicas_ask_for_patience():
    (only,) = shown_by(ScriptedReplicas([ReplicasFullError()]), HELLO)
    assert only.error == ENGLISH.busy.format(seconds=5)


def test_files_over_the_limit_of_a_request_are_not_sent():
    replicas = ScriptedReplicas()
    picture = {"role": "user", "content": [{"type": "image", "url": "data:image/png;base64," + "A" * 10_000}]}
    (only,) = shown_by(replicas, picture, HELLO)
    assert only.error is not None
    assert "10,022 bytes" in only.error
    assert not replicas.questions


@pytest.mark.parametrize(("kind", "field"), [("image", "image_url"), ("video", "video_url")])
def test_a_picture_goes_where_requests_with_it_go(kind: str, field: str):
    turns = [HELLO, {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": kind, "url": "data:x"}]}]
    asked = {"messages": [{"role": "user", "content": [{"type": field, field: {"url": "data:x", "detail": "low"}}]}]}
    assert Question(turns, CHOICES, "en").affinity == affinity_key(asked)
    assert Question([HELLO], CHOICES, "en").affinity != affinity_key(asked)


@pytest.fixture(scope="module")
def server(model: vila_core.Vila) -> Iterator[RunningServer]:
    """A front whose only replica is an application in the same process, which begins and ends with the front."""
    behind = create_app(model, ServeSettings(page=False))
    service = behind.state.service
    answers = ReplicaAnswers(lambda question: Turns(service).answer(question), max_bytes=1_000_000)
    settings = ServeSettings(replicas=2)

    def add_page(inner: ASGIApp) -> ASGIApp:
        page = with_page(inner, answers, PageModel.of(service), settings)
        assert isinstance(page, FastAPI)
        own = page.router.lifespan_context

        @asynccontextmanager
        async def life(running: Any) -> AsyncGenerator[Any]:
            async with behind.router.lifespan_context(behind), own(running) as state:
                yield state

        page.router.lifespan_context = life
        return page

    with running(create_front(ScriptedReplicas(), settings, add_page)) as started:
        yield started


def test_the_page_answers_about_an_upload(page: PageClient):
    uploaded = page.upload(("word.png", (MEDIA / "word.png").read_bytes())).json()
    assert page.ask("What word is written?", uploaded).status_code == 200
    texts, status, seen = streamed(page)
    assert texts[-1] == "HINT"
    assert "tokens" in status
    assert "data:image/webp" in seen


def test_other_requests_go_to_the_replicas(server: RunningServer):
    for path in ("/v1/models", "/health", "/nothing", "/gradio_api/info", "/v1/models/"):
        response = httpx2.get(f"{server.url}{path}")
        assert (response.status_code, response.text) == (200, path)
    assert "text/html" in httpx2.get(f"{server.url}/", headers={"accept": "text/html"}).headers["content-type"]
    assert httpx2.get(f"{server.url}{API}/file=/etc/passwd").status_code == 404


def test_the_key_guards_the_page_of_a_front():
    settings = ServeSettings(replicas=2, api_key="key")
    replicas = ScriptedReplicas()
    answers = ReplicaAnswers(replicas.ask, max_bytes=1)
    front = create_front(replicas, settings, lambda inner: with_page(inner, answers, MODEL, settings))
    with running(front) as started:
        assert httpx2.get(f"{started.url}/").status_code == 401
        assert httpx2.get(f"{started.url}/", auth=("any", "key")).status_code == 200
        assert httpx2.get(f"{started.url}/health").status_code == 200
