"""Publishes an instance's metrics on the server's metrics port, through Triton's custom metric API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from enginewright.runtime.triton.counters import METRICS, Key, Publisher, SilentPublisher, Values


class _TritonMetrics:
    """Triton's metric objects of this instance; created by `open_publisher`.

    Each change is a message to the server, so unchanged values are not sent.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._families: dict[str, Any] = {}
        self._metrics: dict[Key, Any] = {}
        self._counters: set[Key] = set()
        self._shown: Values = {}
        for metric in METRICS:
            is_counter = metric.kind == "counter"
            if metric.name not in self._families:
                kind = pb_utils.MetricFamily.COUNTER if is_counter else pb_utils.MetricFamily.GAUGE
                self._families[metric.name] = pb_utils.MetricFamily(
                    name=metric.name, description=metric.description, kind=kind
                )
            key = (metric.name, metric.label)
            own = {**labels, **dict([metric.label] if metric.label else [])}
            self._metrics[key] = self._families[metric.name].Metric(labels=own)
            if is_counter:
                self._counters.add(key)

    def publish(self, values: Values) -> None:
        """Send the values that have changed since the last call; stop where the server is ending."""
        for key, value in values.items():
            shown = self._shown.get(key, 0.0)
            if value == shown:
                continue
            try:
                if key in self._counters:
                    self._metrics[key].increment(value - shown)
                else:
                    self._metrics[key].set(value)
            except pb_utils.TritonModelException:
                return  # the server is ending, and answers to requests matter more
            self._shown[key] = value


def open_publisher(labels: Mapping[str, str]) -> Publisher:
    """Return a publisher of metrics with these labels; one that shows nothing, with a line in the log, without metrics."""
    try:
        return _TritonMetrics(labels)
    except pb_utils.TritonModelException as e:
        pb_utils.Logger.log_info(f"enginewright: no custom metrics, because the server has none ({e})")
        return SilentPublisher()
