"""One replica: the whole application in a process of its own, without a port."""

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve

from vila_serve.api.service import Service
from vila_serve.page.question import PageModel, Question, Shown
from vila_serve.page.turn import Turns
from vila_serve.replicas.messages import HttpRequest, ResponseStart

Message = MutableMapping[str, Any]


class Replica:
    """Answers requests with an application of its own.

    Args:
        build: makes the application, with its model.
    """

    async def __init__(self, build: Callable[[], FastAPI]):
        self._app = await asyncio.to_thread(build)
        self._lifespan = AsyncExitStack()
        await self._lifespan.enter_async_context(self._app.router.lifespan_context(self._app))

    async def __del__(self) -> None:
        """Let the application finish what runs. Ray calls this when it stops a replica."""
        await self._lifespan.aclose()

    async def metrics(self) -> tuple[str, str]:
        """Return the name of this replica and the text at its /metrics."""
        service: Service = self._app.state.service
        return serve.get_replica_context().replica_tag, (await service.metrics_text()).decode()

    async def page_model(self) -> PageModel:
        """Return what the chat page says of the model."""
        return PageModel.of(self._app.state.service)

    async def ask(self, question: Question) -> AsyncIterator[Shown]:
        """Yield what the chat page shows while a question is answered."""
        async with aclosing(Turns(self._app.state.service).answer(question)) as news:
            async for shown in news:
                yield shown

    async def answer(self, request: HttpRequest) -> AsyncIterator[ResponseStart | bytes]:
        """Yield the start of the response, then the parts of its body as the application sends them."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=64)
        task = asyncio.create_task(self._run(request, messages))
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    yield ResponseStart(message["status"], tuple(message.get("headers", ())))
                elif message.get("body"):
                    yield message["body"]
            await task
        finally:
            task.cancel()  # the front has gone: so does the request

    async def _run(self, request: HttpRequest, messages: "asyncio.Queue[Message | None]") -> None:
        body: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

        async def receive() -> Message:
            if body:
                return body.pop()
            await asyncio.Event().wait()  # a disconnection cancels this task
            raise AssertionError

        async def send(message: Message) -> None:
            await messages.put(message)

        try:
            await self._app(_scope(request), receive, send)
        finally:
            await messages.put(None)


def _scope(request: HttpRequest) -> Message:
    """Return the ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": "",
        "query_string": request.query,
        "headers": [*request.headers],
        "client": request.client,
        "server": None,
    }
