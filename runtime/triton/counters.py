"""The counters of a serving instance, and the metrics that it reports from them."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from enginewright.runtime.scheduling.step_loop import StepTiming

Ending: TypeAlias = Literal["completed", "cancelled", "refused", "timed_out", "failed"]
Key: TypeAlias = tuple[str, tuple[str, str] | None]
"""A metric's name, and its label if it has one."""
Values: TypeAlias = dict[Key, float]
ENDINGS: tuple[Ending, ...] = ("completed", "cancelled", "refused", "timed_out", "failed")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a serving instance.

    name: its name on the metrics port.
    kind: "counter" for a value that only grows, otherwise "gauge".
    description: the text that the metrics port shows with it.
    label: a label (name, value), in addition to the labels that tell instances apart.
    """

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    label: tuple[str, str] | None = None


_REQUESTS = "enginewright_requests_total"
METRICS = (
    Metric("enginewright_tokens_total", "counter", "Tokens generated"),
    Metric("enginewright_steps_total", "counter", "Steps of the in-flight batch"),
    Metric("enginewright_first_tokens_total", "counter", "Requests that got a first token"),
    Metric("enginewright_first_token_seconds_total", "counter", "Time from arrival to first token, over all requests"),
    *(Metric(_REQUESTS, "counter", "Requests that ended, by outcome", ("outcome", outcome)) for outcome in ENDINGS),
    Metric("enginewright_tokens_per_second", "gauge", "Tokens generated per second, since the last report"),
    Metric(
        "enginewright_first_token_seconds", "gauge", "Mean time to first token of the requests since the last report"
    ),
    Metric("enginewright_batch_size", "gauge", "Requests that got a token in a step, mean since the last report"),
    Metric("enginewright_cache_use_ratio", "gauge", "Share of the cache that requests hold"),
    Metric("enginewright_running", "gauge", "Requests that have a row in the batch"),
    Metric("enginewright_waiting", "gauge", "Requests that wait for a row"),
    Metric("enginewright_cancel_steps_max", "gauge", "Most steps between a cancellation and the free row, so far"),
)


class Publisher(Protocol):
    """Shows an instance's metrics to those who watch the server."""

    def publish(self, values: Values) -> None:
        """Show the value of every metric, given by name and label."""
        ...


class SilentPublisher:
    """Shows no metrics; for a server that has none."""

    def publish(self, values: Values) -> None:
        """Drop the values."""


class InstanceCounters:
    """The counters of one serving instance; created by the Server.

    The step loop's thread counts steps and tokens; any thread counts the ends of requests.

    steps: steps of the in-flight batch.
    tokens: tokens generated.
    first_tokens: requests that got a first token.
    first_token_seconds: time from arrival to first token, over all requests.
    cancel_steps: the most steps between a cancellation and the end of its request; set by the Server.
    """

    def __init__(self) -> None:
        self.steps = self.tokens = self.first_tokens = self.cancel_steps = 0
        self.first_token_seconds = 0.0
        self._sampled = 0
        self._outcomes: Counter[Ending] = Counter()
        self._lock = threading.Lock()
        self._last = (0.0, 0, 0, 0, 0.0, 0)

    def step(self, timing: StepTiming) -> None:
        """Count one step; the Server makes it the step loop's observer."""
        self.steps += 1
        self.tokens += timing.decided
        self._sampled += timing.sampled

    def first_token(self, seconds: float) -> None:
        """Count a request's first token; called on the step loop's thread."""
        self.first_tokens += 1
        self.first_token_seconds += seconds

    def end(self, outcome: Ending) -> None:
        """Count the end of a request."""
        with self._lock:
            self._outcomes[outcome] += 1

    def report(self, now: float, *, cache_use: float, running: int, waiting: int) -> Values:
        """Return the value of every metric; rates and means are over the time since the last report.

        now: seconds of `time.perf_counter`.
        """
        counts = (now, self.steps, self.tokens, self.first_tokens, self.first_token_seconds, self._sampled)
        seconds, steps, tokens, firsts, first_seconds, sampled = (
            new - old for new, old in zip(counts, self._last, strict=True)
        )
        self._last = counts
        values: Values = {(_REQUESTS, ("outcome", outcome)): self._outcomes[outcome] for outcome in ENDINGS}
        plain = {
            "tokens_total": counts[2],
            "steps_total": counts[1],
            "first_tokens_total": counts[3],
            "first_token_seconds_total": counts[4],
            "tokens_per_second": tokens / seconds if seconds else 0,
            "first_token_seconds": first_seconds / firsts if firsts else 0,
            "batch_size": sampled / steps if steps else 0,
            "cache_use_ratio": cache_use,
            "running": running,
            "waiting": waiting,
            "cancel_steps_max": self.cancel_steps,
        }
        values.update({(f"enginewright_{name}", None): value for name, value in plain.items()})
        return values
