"""The numbers of all replicas on one page: each gets a label that names its replica."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample


class FrontMetrics:
    """Counts the requests at the front, which includes those that no replica answered."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "vila_front_requests", "Requests at the front by status.", ["status"], registry=self._registry
        )

    def request_ended(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request. Status 499 means that the client left."""
        self._requests.labels(str(status)).inc()

    def render(self) -> bytes:
        """Return the front's numbers as text."""
        return generate_latest(self._registry)


def merge(texts: Mapping[str, str]) -> bytes:
    """Return the metrics of replicas `texts`, by the name of the replica, as one text."""
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, str]):
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once, with the samples of all replicas."""
        merged: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                metric = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                metric.samples += [
                    Sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
                    for sample in family.samples
                    if not sample.name.endswith("_created")
                ]
        yield from merged.values()
