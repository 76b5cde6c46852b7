"""Client for a judge: one chat completion from an OpenAI-compatible endpoint (`POST <base_url>/chat/completions`).

Replies are untrusted: their size and time are limited, and they are treated as text. The key is only sent in the
request's header, and it is removed from replies and error messages in case the endpoint echoes it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from vila_eval.errors import JudgeError
from vila_eval.metric import JudgeRequest
from vila_eval.options import JudgeOptions

if TYPE_CHECKING:
    import httpx2

MAX_REPLY_BYTES = 4 * 2**20
"""Size limit of a response. A verdict has a few hundred bytes, or some kilobytes with reasoning."""

MAX_WAIT_S = 600.0
"""Longest accepted Retry-After. Beyond it judging stops and can be resumed later."""

RETRIED = frozenset({408, 409, 429})
"""Statuses after which a retry may succeed, like all from 500 on."""

STOPPING = {
    401: "refuses the API key",
    402: "asks for payment",
    403: "refuses the API key for this model",
    404: "knows no such address or model",
    405: "takes no chat completions at this address",
}
"""Statuses that every other request would get too."""

SHARED_PARAMETERS = ("model", "max_tokens", "temperature")
"""Parameters shared by all requests of a run: if the endpoint rejects one, it rejects every request."""


@dataclass(frozen=True)
class Reply:
    """A judge's reply, with the endpoint's name of the model and its token counts."""

    text: str
    served_model: str | None
    prompt_tokens: int
    completion_tokens: int


class FailedRequestError(Exception):
    """One request failed; others may succeed.

    Attributes:
        retry: whether the same request may succeed later.
        wait_s: the least pause before that, as the endpoint asked.
        unreachable: there was no connection at all.
    """

    def __init__(self, message: str, *, retry: bool = True, wait_s: float = 0.0, unreachable: bool = False):
        super().__init__(message)
        self.retry, self.wait_s, self.unreachable = retry, wait_s, unreachable


class JudgeClient:
    """Connections to one endpoint. Thread-safe; use it in a `with` block.

    Raises:
        JudgeError: the address or the key cannot be used.
    """

    def __init__(self, options: JudgeOptions):
        import httpx2

        self._key = _usable_key(options)
        self._place = _usable_address(options)
        self._timeout_s = options.timeout_s
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx2.Client(headers=headers, timeout=options.timeout_s, follow_redirects=False)

    def __enter__(self) -> JudgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, request: JudgeRequest, model: str, temperature: float) -> Reply:
        """Send one request and wait for its reply.

        Raises:
            FailedRequestError: this request failed.
            JudgeError: every request would fail (bad key, unknown model, no quota).
        """
        import httpx2

        body = {
            "model": model,
            "messages": list(request.messages),
            "temperature": temperature,
            "max_tokens": request.max_tokens,
        }
        try:
            with self._http.stream("POST", f"{self._place}/chat/completions", json=body) as response:
                content = self._read(response)
        except httpx2.ConnectError as error:
            raise FailedRequestError(
                self._clean(f"No connection to {self._place}: {error}"), unreachable=True
            ) from None
        except httpx2.TimeoutException:
            raise FailedRequestError(f"No reply within {self._timeout_s:g} s.") from None
        except httpx2.TransportError as error:
            raise FailedRequestError(self._clean(f"The connection broke: {type(error).__name__}: {error}")) from None
        if response.status_code != 200:
            raise self._refusal(response, content, model)
        return self._reply(content)

    def _read(self, response: httpx2.Response) -> str:
        """Return the body. httpx limits the time of each chunk, so the total is limited here."""
        deadline = time.monotonic() + self._timeout_s
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > MAX_REPLY_BYTES:
                raise FailedRequestError(f"The reply is longer than {MAX_REPLY_BYTES} bytes.")
            if time.monotonic() > deadline:
                raise FailedRequestError(f"No whole reply within {self._timeout_s:g} s.")
        return content.decode("utf-8", errors="replace")

    def _refusal(self, response: httpx2.Response, content: str, model: str) -> FailedRequestError | JudgeError:
        """Return the error to raise: for this request, or for all requests."""
        status, error = response.status_code, _error_of(content)
        said = self._clean(f"HTTP {status}: {error.get('message') or content.strip() or response.reason_phrase}")[:500]
        advice = "Replies so far are kept: run again when that is mended."
        if status < 400:
            return JudgeError(
                f"The judge at {self._place} answers with a redirect (HTTP {status}). "
                "Give the address that it leads to."
            )
        if status in STOPPING:
            return JudgeError(f"The judge at {self._place} {STOPPING[status]} (model '{model}'). {said} {advice}")
        if status == 429 and error.get("code") == "insufficient_quota":
            return JudgeError(f"The quota at {self._place} is used up. {said} {advice}")
        if status == 400 and error.get("param") in SHARED_PARAMETERS:
            return JudgeError(
                f"The model '{model}' at {self._place} cannot be used as a judge. {said} "
                "Name another with --judge-model."
            )
        wait_s = _retry_after(response.headers.get("retry-after"))
        if wait_s > MAX_WAIT_S:
            return JudgeError(f"The judge at {self._place} asks to wait {wait_s:.0f} s. {said} {advice}")
        return FailedRequestError(said, retry=status in RETRIED or status >= 500, wait_s=wait_s)

    def _reply(self, content: str) -> Reply:
        try:
            body: Any = json.loads(content)
            text = body["choices"][0]["message"]["content"]
            usage = body.get("usage") or {}
            tokens = [max(0, int(usage.get(name) or 0)) for name in ("prompt_tokens", "completion_tokens")]
            served = body.get("model")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
            raise FailedRequestError(
                self._clean(f"The reply is no chat completion: {content.strip()[:200]!r}")
            ) from None
        if not isinstance(text, str) or not text.strip():
            raise FailedRequestError("The reply is empty.")
        return Reply(self._clean(text), self._clean(served) if isinstance(served, str) else None, tokens[0], tokens[1])

    def _clean(self, text: str) -> str:
        """Remove the key, and characters that UTF-8 cannot encode (lone surrogates)."""
        text = text.encode("utf-8", errors="replace").decode()
        return text.replace(self._key, "[the API key]") if self._key else text


def _usable_key(options: JudgeOptions) -> str | None:
    key = options.api_key.strip() if options.api_key else None
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise JudgeError(
            "The judge's API key holds a blank, a line break or a letter that no key has. Check how it was copied."
        )
    return key or None


def _usable_address(options: JudgeOptions) -> str:
    url = options.base_url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable, parts = False, urlsplit("")
    # Messages show the address, and a password or query in it may be secret.
    if not usable or "@" in url or "?" in url or "#" in url:
        raise JudgeError(
            "The judge's address cannot be used. Expected one such as https://api.openai.com/v1 or http://localhost:8000/v1."
        )
    if parts.path.endswith("/chat/completions"):
        raise JudgeError("Give the judge's address without '/chat/completions', which is added to it.")
    if options.api_key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise JudgeError(
            f"The API key would travel to {parts.hostname} unencrypted. Use https, or a judge on this machine."
        )
    return url


def _error_of(content: str) -> Mapping[str, Any]:
    """Return the object "error" of an OpenAI-style body, or an empty one."""
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    error = cast("dict[str, Any]", body).get("error") if isinstance(body, dict) else None
    return cast("dict[str, Any]", error) if isinstance(error, dict) else {}


def _retry_after(value: str | None) -> float:
    """Return the seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return 0.0
    try:
        seconds = (
            float(value)
            if value.strip().isdecimal()
            else (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, seconds)
