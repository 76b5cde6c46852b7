"""OpenTelemetry traces: a span for each request, and below it one for each answer with its phases.

The extra `vila-serve[tracing]` installs what this needs.
"""

import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vila_core.plugins.lazy import optional_import
from vila_serve import __version__
from vila_serve.answering import RunningAnswer
from vila_serve.request_id import request_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

UNTRACED = ("/health", "/ready", "/metrics")
"""Routes that are called by machines every few seconds."""


class Tracing:
    """Makes the spans and sends them in the background.

    Args:
        endpoint: an OTLP collector, such as http://localhost:4318/v1/traces.
        exporter: sends the spans; None for OTLP over HTTP.

    Raises:
        MissingDependencyError: the extra `tracing` is not installed.
    """

    def __init__(self, endpoint: str, exporter: "SpanExporter | None" = None):
        with optional_import("Tracing (--otlp-endpoint)", "vila-serve[tracing]", "opentelemetry"):
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "vila-serve", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("vila_serve", __version__)

    def answer_ended(self, answer: RunningAnswer) -> None:
        """Record an answer below the span of the current request, with OpenTelemetry's names for generative AI."""
        from opentelemetry.trace import set_span_in_context

        start, ending = _nanoseconds(answer.submitted), answer.ending
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": answer.prompt.prompt_tokens,
            "vila.usage.media_tokens": answer.prompt.media_tokens,
            "vila.preprocess_seconds": answer.prompt.seconds,
        }
        if ending is not None:
            attributes["gen_ai.usage.output_tokens"] = ending.usage.completion_tokens + ending.picture_tokens
            attributes["gen_ai.response.finish_reasons"] = [ending.finish_reason]
            attributes["vila.usage.cached_tokens"] = ending.usage.cached_tokens
        span = self.tracer.start_span("answer", start_time=start, attributes=attributes)
        if answer.first_arrival is not None:
            first = _nanoseconds(answer.first_arrival)
            inner = set_span_in_context(span)
            self.tracer.start_span("first token", inner, start_time=start).end(first)
            self.tracer.start_span("further tokens", inner, start_time=first).end(time.time_ns())
        span.end()

    def flush(self) -> None:
        """Send now what would be sent within seconds."""
        self._provider.force_flush()

    def shut_down(self) -> None:
        """Send what has not been sent yet."""
        self._provider.shutdown()


class TraceRequests:
    """Middleware that makes a span for each request. A `traceparent` header of the client makes it part of a trace."""

    def __init__(self, app: ASGIApp, tracing: Tracing):
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "vila.request_id": str(request_id.get()),
        }
        tracer = self._tracing.tracer
        with tracer.start_as_current_span("request", parent, SpanKind.SERVER, attributes=attributes) as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self._app(scope, receive, send_and_note)


def _nanoseconds(moment: float) -> int:
    """Turn seconds of `time.perf_counter` into nanoseconds since 1970."""
    return time.time_ns() - round((time.perf_counter() - moment) * 1e9)
