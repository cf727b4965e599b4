"""Prometheus metrics of a node, read from its view when they are asked for.

Owns names, help and units.  Nothing is registered globally: two nodes in one process have two sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from twisted.web.iweb import IRequest

from relay import __version__
from relay.admin.site import Answer
from relay.admin.views import Metric, NodeView, StreamView

STATES = ("normal", "degraded", "down")


def gauge(name: str, help_text: str, labels: Iterable[str] = ()) -> GaugeMetricFamily:
    """A family of numbers that go up and down; its name says the unit."""
    return GaugeMetricFamily(f"relay_{name}", help_text, labels=list(labels))


class NodeCollector(Collector):
    """Turns a :class:`NodeView` into metric families."""

    def __init__(self, view: NodeView) -> None:
        self._view = view

    def collect(self) -> Iterator[Family]:
        view = self._view
        info = gauge("node_info", "Always 1; the labels say which node this is.", ["node", "tier", "version"])
        info.add_metric([view.name, view.tier, __version__], 1)
        yield info
        state = view.health().state
        health = gauge("node_state", "1 for the state that the node is in, 0 for the others.", ["state"])
        for each in STATES:
            health.add_metric([each], each == state)
        yield health
        viewers = gauge("viewers", "Viewers, not counting copies by other nodes.")
        viewers.add_metric([], view.viewers)
        yield viewers
        yield from self._streams(view.streams())
        links = gauge("link_up", "1 while the neighbour answers.", ["link", "endpoint"])
        for link in view.links():
            links.add_metric([link.name, link.endpoint], link.state in ("up", "foreign"))
        yield links
        for metric in view.metrics():
            yield family(metric)

    def _streams(self, streams: Iterable[StreamView]) -> list[Family]:
        live = gauge("stream_live", "1 while somebody feeds the stream.", ["stream"])
        start = gauge("stream_start_bytes", "Offset of the first byte of the log that is here.", ["stream", "epoch"])
        end = gauge("stream_end_bytes", "Offset after the log's last byte: how far this node is.", ["stream", "epoch"])
        rate = gauge("stream_bytes_per_second", "How fast the log grows.", ["stream"])
        viewers = gauge("stream_viewers", "Connections that the stream is sent to.", ["stream"])
        for stream in streams:
            live.add_metric([stream.name], stream.is_live)
            start.add_metric([stream.name, str(stream.epoch)], stream.start)
            end.add_metric([stream.name, str(stream.epoch)], stream.end)
            rate.add_metric([stream.name], stream.bitrate_bps / 8)
            viewers.add_metric([stream.name], stream.viewers)
        return [live, start, end, rate, viewers]


def family(metric: Metric) -> Family:
    """A metric of one tier as Prometheus wants it."""
    kind = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
    names = metric.label.split(",") if metric.label else []
    made = kind(f"relay_{metric.name}", metric.help, labels=names)
    for label, value in metric.values.items():
        made.add_metric(label.split(",") if names else [], value)
    return made


class MetricsRoute:
    """``/metrics``: what the collector gives, and the memory, files and CPU time of this process."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def __call__(self, request: IRequest) -> Answer:
        accept = request.getHeader("Accept") or ""
        encode, content_type = choose_encoder(accept)
        return Answer(encode(self._registry), content_type)


def label_counts(counts: Mapping[str, int]) -> dict[str, float]:
    """A ``collections.Counter`` as the values of a :class:`Metric`."""
    return {label: float(count) for label, count in sorted(counts.items())}
