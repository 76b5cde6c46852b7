"""Metrics, logs, traces and the dashboard."""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from tests.running_server import RunningServer, running, wait_until
from tests.serve.conftest import user

import vila_core
from vila_serve.api import app as application
from vila_serve.observability import logs, tracing
from vila_serve.request_id import request_id
from vila_serve.settings import ServeSettings

DASHBOARD = Path(__file__).parents[2] / "docker/grafana/dashboards/vila-serve.json"
CHAT = "/v1/chat/completions"


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return http.post(CHAT, json={"model": "vila-tiny", "messages": [user("What is red?")], "temperature": 0, **fields})


def samples(http: httpx2.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample of /metrics by name and labels."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("n", [1, 3])
def test_metrics_count_answers(http: httpx2.Client, n: int):
    before = samples(http)
    usage = ask(http, max_tokens=5, n=n).json()["usage"]
    after = samples(http)

    def gained(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0.0)

    assert gained("vila_requests_total", path=CHAT, status="200") == 1
    assert gained("vila_answer_tokens_total") == usage["completion_tokens"]
    assert gained("vila_prompt_tokens_total", kind="text") == usage["prompt_tokens"]
    for name in ("vila_time_to_first_token_seconds", "vila_queue_seconds"):
        assert gained(f"{name}_count") == n
    waited = gained("vila_queue_seconds_sum")
    assert 0 <= waited < gained("vila_time_to_first_token_seconds_sum")
    assert after["vila_engine_requests", (("state", "answering"),)] == 0


def test_a_question_that_comes_again_is_found_in_the_cache(http: httpx2.Client):
    def cached() -> float:
        return samples(http)["vila_cached_prompt_tokens_total", ()]

    question = [user("How many pictures are there? " * 20)]
    ask(http, messages=question, max_tokens=2)
    before = cached()
    ask(http, messages=question, max_tokens=2)
    assert cached() > before


def test_refused_requests_are_counted_by_status(http: httpx2.Client):
    def refused() -> float:
        return samples(http).get(("vila_requests_total", (("path", CHAT), ("status", "400"))), 0.0)

    before = refused()
    assert ask(http, temperature=-1).status_code == 400
    assert refused() == before + 1


def test_every_metric_of_the_dashboard_exists(http: httpx2.Client):
    ask(http, max_tokens=3)
    known = {name for name, _ in samples(http)}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"\bvila_\w+", query)}
    assert len(queries) > 10
    assert named - known == set()
    counted = {name for name in known if name.startswith("vila_") and not name.endswith(("_created", "_sum", "_count"))}
    not_shown = counted - named
    assert not_shown == set(), "metrics without a panel"
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(positions)) == len(positions)
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.fixture
def log() -> Iterator[Callable[[logging.Formatter], io.StringIO]]:
    """Return the output of a logger of its own with this formatter."""
    logger, output = logging.getLogger("vila_serve.test"), io.StringIO()
    handler = logging.StreamHandler(output)
    handler.addFilter(logs.AddRequestId())

    def start(formatter: logging.Formatter) -> io.StringIO:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        logger.setLevel("INFO")
        return output

    yield start
    logger.removeHandler(handler)


def test_json_lines_hold_the_request_id_the_fields_and_the_traceback(log: Callable[[logging.Formatter], io.StringIO]):
    output = log(logs.JsonFormatter())
    logger = logging.getLogger("vila_serve.test")
    logger.info("Café\n%s", "two", extra={"data": {"status": 200, "path": Path("/x")}})
    token = request_id.set("req_12345678")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("It failed.")
    finally:
        request_id.reset(token)
    first, second = map(json.loads, output.getvalue().splitlines())
    assert first["message"] == "Café\ntwo"
    assert (first["level"], first["status"], first["path"], first["request_id"]) == ("info", 200, "/x", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert (second["level"], second["request_id"]) == ("error", "req_12345678")
    assert second["exception"].endswith("ValueError: broken")


@pytest.mark.parametrize("forged", ["\n2026 INFO a: b", "\r\n2026 INFO a: b", "\x1b[2Jcleared", "\u2028next"])
def test_text_from_clients_cannot_forge_lines(log: Callable[[logging.Formatter], io.StringIO], forged: str):
    for formatter in (logs.TextFormatter(), logs.JsonFormatter()):
        output = log(formatter)
        output.truncate(0)
        logging.getLogger("vila_serve.test").info("GET %s", f"/v1{forged}")
        written = output.getvalue().removesuffix("\n").lstrip("\0")
        assert len(written.splitlines()) == 1
        assert "\x1b" not in written


def test_the_access_log_has_fields(http: httpx2.Client, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", "vila_serve.access"):
        http.get("/nowhere")
        wait_until(lambda: any(record.name == "vila_serve.access" for record in caplog.records))  # after the response
    data = next(vars(record)["data"] for record in caplog.records if record.name == "vila_serve.access")
    assert (data["method"], data["path"], data["status"]) == ("GET", "/nowhere", 404)
    assert data["seconds"] >= 0


@pytest.fixture
def traced(
    model: vila_core.Vila, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RunningServer, InMemorySpanExporter]]:
    """A server whose spans are kept; they are complete when it has stopped."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(application, "Tracing", lambda endpoint: tracing.Tracing(endpoint, exporter))
    settings = ServeSettings(otlp_endpoint="http://127.0.0.1:4318/v1/traces")
    with running(application.create_app(model, settings)) as server:
        yield server, exporter


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "streamed"])
def test_a_trace_has_the_request_and_its_answer(traced: tuple[RunningServer, InMemorySpanExporter], stream: bool):
    server, exporter = traced
    trace = "0af7651916cd43dd8448eb211c80319c"
    with httpx2.Client(base_url=server.url, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}) as http:
        number = ask(http, max_tokens=4, stream=stream).headers["x-request-id"]
        http.get("/health")

    def finished() -> dict[str, Any]:
        server.app.state.tracing.flush()
        return {span.name: span for span in exporter.get_finished_spans()}

    wait_until(lambda: "request" in finished())  # it ends after the response
    spans = finished()
    assert set(spans) == {"request", "answer", "first token", "further tokens"}
    request, answer = spans["request"], spans["answer"]
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == trace
    assert request.attributes is not None
    assert request.attributes["vila.request_id"] == number
    assert request.attributes["http.response.status_code"] == 200
    assert answer.parent is not None
    assert answer.parent.span_id == request.context.span_id
    assert answer.attributes is not None
    assert 1 <= answer.attributes["gen_ai.usage.output_tokens"] <= 4  # type: ignore[operator]
    assert request.start_time < answer.start_time < answer.end_time <= request.end_time  # type: ignore[operator]
