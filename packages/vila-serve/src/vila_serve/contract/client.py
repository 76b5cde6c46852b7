"""A small client that sees what servers really send."""

import base64
import io
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import PIL.Image

CHAT, IMAGES = "/chat/completions", "/images/generations"


class ContractError(Exception):
    """The server does something else than the contract says."""


def require(is_so: bool, otherwise: str) -> None:
    """Raise `ContractError` unless `is_so`."""
    if not is_so:
        raise ContractError(otherwise)


@dataclass(frozen=True)
class Client:
    """Asks one model of a server.

    Attributes:
        http: with the server's address and key.
        model: its name.
    """

    http: httpx2.Client
    model: str

    def body(self, *content: Any, **fields: Any) -> dict[str, Any]:
        """Return a request with one user message; fields that are None are left out."""
        text = content[0] if len(content) == 1 and isinstance(content[0], str) else None
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": text if text is not None else parts}],
            "temperature": 0,
            "max_tokens": 16,
            **fields,
        }
        return {name: value for name, value in request.items() if value is not None}

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response to a request, which must succeed."""
        response = self.http.post(CHAT, json=body)
        require(response.status_code == 200, f"status {response.status_code}: {response.text[:200]}")
        return response.json()

    def text(self, body: Mapping[str, Any]) -> str:
        """Return the text of the answer."""
        return self.ask(body)["choices"][0]["message"]["content"]

    @property
    def draws(self) -> bool:
        """Whether the server says that the model draws images (`output_modalities`, as OpenRouter has it)."""
        models = self.http.get("/models").json()["data"]
        return any(one["id"] == self.model and "image" in (one.get("output_modalities") or ()) for one in models)

    def chunks(self, body: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        """Yield the chunks of a streamed answer; the last event must be [DONE]."""
        with self.http.stream("POST", CHAT, json={**body, "stream": True}) as response:
            require(response.status_code == 200, f"status {response.status_code}")
            kind = response.headers.get("content-type", "")
            require(kind.startswith("text/event-stream"), f"content-type {kind!r} instead of text/event-stream")
            last = ""
            for line in response.iter_lines():
                if line.startswith("data:"):
                    last = line.removeprefix("data:").strip()
                    if last != "[DONE]":
                        yield json.loads(last)
            require(last == "[DONE]", "the stream does not end with [DONE]")

    def refuse(self, statuses: tuple[int, ...], body: object, path: str = CHAT) -> None:
        """Require that a request gets one of these statuses, with OpenAI's error object."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = self.http.post(path, content=sent, headers={"content-type": "application/json"})
        expected = " or ".join(map(str, statuses))
        require(response.status_code in statuses, f"status {response.status_code} instead of {expected}")
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            raise ContractError(f"no error object in the response: {response.text[:100]}") from None
        require(isinstance(message, str) and bool(message), "the error has no message")


def image_part(color: str, size: int = 64) -> dict[str, Any]:
    """Return a picture of one color as a part of a message."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (size, size), color).save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": uri}}
