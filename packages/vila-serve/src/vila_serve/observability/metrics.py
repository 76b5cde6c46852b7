"""The numbers at /metrics, in the form that Prometheus reads."""

from collections.abc import Callable, Collection, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vila_core.engine.limits import EngineStats
from vila_serve.answering import RunningAnswer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class EngineCollector(Collector):
    """Shows what the engine was doing when it was asked last; nothing before.

    Attributes:
        stats: what it was doing.
    """

    def __init__(self) -> None:
        self.stats: EngineStats | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's gauges and counters."""
        stats = self.stats
        if stats is None:
            return
        requests = GaugeMetricFamily("vila_engine_requests", "Requests in the engine.", labels=["state"])
        for state, count in (("queued", stats.queued), ("reading", stats.reading), ("answering", stats.answering)):
            requests.add_metric([state], count)
        yield requests
        pages = GaugeMetricFamily("vila_cache_pages", "Pages of the KV cache.", labels=["state"])
        free = stats.pages - stats.pages_used - stats.pages_kept
        for state, count in (("used", stats.pages_used), ("kept", stats.pages_kept), ("free", free)):
            pages.add_metric([state], count)
        yield pages
        yield CounterMetricFamily(
            "vila_cached_prompt_tokens", "Prompt tokens found in the cache.", value=stats.cached_tokens
        )
        yield CounterMetricFamily(
            "vila_preemptions", "Requests that had to give up their pages.", value=stats.preemptions
        )


AnswerObserver = Callable[[RunningAnswer], None]


class Metrics:
    """Counts requests, answers and tokens.

    Args:
        paths: the routes that are named in the metrics; all others count as "other".
        observers: called with each answer that has ended, too.
    """

    def __init__(self, paths: Collection[str], observers: Collection[AnswerObserver] = ()):
        self.registry = CollectorRegistry()
        self._observers = tuple(observers)
        self._paths = frozenset(paths)
        self._engine = EngineCollector()
        self.registry.register(self._engine)
        self._requests = Counter(
            "vila_requests", "Requests by route and status.", ["path", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "vila_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self._queue_seconds = Histogram(
            "vila_queue_seconds",
            "Time that a prompt waited before it was read.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first_token = Histogram(
            "vila_time_to_first_token_seconds",
            "From the submission of a prepared prompt to the first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._token_seconds = Histogram(
            "vila_time_per_token_seconds",
            "Time between tokens of an answer, on average.",
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self._prompt_tokens = Counter("vila_prompt_tokens", "Tokens of prompts.", ["kind"], registry=self.registry)
        self._answer_tokens = Counter("vila_answer_tokens", "Tokens of answers.", registry=self.registry)
        self._picture_tokens = Counter(
            "vila_picture_tokens", "Positions of pictures that were drawn.", registry=self.registry
        )
        self._answers = Counter("vila_answers", "Answers by reason for their end.", ["reason"], registry=self.registry)

    def request_ended(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request. Status 499 means that the client left."""
        path = path if path in self._paths else "other"
        self._requests.labels(path, str(status)).inc()
        self._request_seconds.labels(path).observe(seconds)

    def answer_ended(self, answer: RunningAnswer) -> None:
        """Count an answer: complete, cancelled, or failed."""
        for observer in self._observers:
            observer(answer)
        ending = answer.ending
        if answer.first_arrival is not None:
            self._first_token.observe(answer.first_arrival - answer.submitted)
        if answer.is_first:
            self._prompt_tokens.labels("media").inc(answer.prompt.media_tokens)
            self._prompt_tokens.labels("text").inc(answer.prompt.prompt_tokens - answer.prompt.media_tokens)
        if ending is None:
            self._answers.labels("cancelled" if answer.is_cancelled else "failed").inc()
            return
        self._queue_seconds.observe(ending.queue_seconds)
        self._answers.labels(ending.finish_reason).inc()
        self._answer_tokens.inc(ending.usage.completion_tokens)
        self._picture_tokens.inc(ending.picture_tokens)
        if ending.usage.completion_tokens > 1 and not ending.picture_tokens:
            self._token_seconds.observe(ending.timings.decode / (ending.usage.completion_tokens - 1))

    def render(self, stats: EngineStats | None) -> bytes:
        """Return all numbers as text, with what the engine is doing; None leaves that as it was."""
        self._engine.stats = stats or self._engine.stats
        return generate_latest(self.registry)
