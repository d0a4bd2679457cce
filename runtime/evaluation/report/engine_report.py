"""The report of an evaluation: the same for the same seed, except for times, which are in an object of their own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.evaluation.intervals import CONFIDENCE, Estimate
from enginewright.runtime.evaluation.report.memory_traffic import Traffic


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of right answers.

    overall: over all problems.
    kinds: for each kind of problem.
    tokens_generated: number of tokens in all replies.
    finish_reasons: finish reason -> number of replies.
    guessed, agreed: as in Answer, over all replies; 0 where a step decides one token.
    """

    overall: Estimate
    kinds: dict[str, Estimate]
    tokens_generated: int
    finish_reasons: dict[str, int]
    guessed: int = 0
    agreed: int = 0


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Likelihood of the scored texts.

    tokens: number of scored tokens.
    nats: negative log-likelihood per token, in nats.
    perplexity: the exponential of `nats`.
    bits_per_byte: negative log-likelihood per byte of UTF-8, in bits.
    """

    tokens: int
    nats: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement with the reference engine.

    The tokens compared are those of the reference's own replies, teacher-forced, or those of the scored texts. The last three
    fields are there only where engines answer problems.

    tokens: number of tokens compared.
    mean_kl: KL(reference || engine), in nats per token.
    worst_kl: the mean of the largest 5 % of the tokens' KL, in nats.
    top1: share of tokens at which both find the same token most probable.
    answers: share of problems with the same final answer.
    never_parts: share of replies that are the same token for token.
    parts_after: of the replies that differ, the median number of equal tokens at the beginning; None where none differs.
    """

    tokens: int
    mean_kl: Estimate
    worst_kl: Estimate
    top1: Estimate
    answers: Estimate | None = None
    never_parts: Estimate | None = None
    parts_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An engine's measure minus that of another engine, on the same problems or texts.

    against: name of the other engine.
    measure: "accuracy", or "nats" per token.
    estimate: the difference, with its interval.
    differs: whether the interval leaves out 0; otherwise no difference is shown.
    mcnemar: for accuracy, the exact probability of right answers distributed at least so unevenly if both engines were
        equally good.
    """

    against: str
    measure: str
    estimate: Estimate
    differs: bool
    mcnemar: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of an engine, which depend on the machine and its load, unlike all else in a report.

    seconds: time that all answers or texts took together.
    tokens_per_second: tokens generated per second, in which time the prompts are computed as well; where texts are scored,
        tokens read per second. Over all requests together.
    """

    seconds: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """The report of one engine.

    name: its name in this evaluation.
    path: its directory.
    weights, kv_bits, applied: as in its manifest.
    traffic: bytes read for each token, weights and cache apart.
    bytes_per_token: their sum.
    accuracy: where it answered problems.
    likelihood: where it scored texts.
    agreement: with the reference, where there is one; None for the reference.
    difference: from the first engine, where the measures can be compared; None for the first.
    timing: how long it took.
    """

    name: str
    path: str
    weights: dict[str, Any]
    kv_bits: int
    applied: tuple[dict[str, Any], ...]
    traffic: Traffic
    bytes_per_token: float
    accuracy: Accuracy | None
    likelihood: Likelihood | None
    agreement: Agreement | None
    difference: Difference | None
    timing: Timing

    @property
    def quality(self) -> Estimate:
        """The main measure: overall accuracy, or perplexity."""
        if self.accuracy is not None:
            return self.accuracy.overall
        assert self.likelihood is not None
        return self.likelihood.perplexity


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of one evaluation.

    suite, level, seed, data, window: the parameters of the Task; level is None where a data file is scored.
    drawn: number of problems of each kind, or of texts.
    reference: name of the engine that the others are compared with, if there is one.
    engines: the reports of the engines, the reference first.
    confidence: the level of the intervals.
    """

    suite: str
    level: str | None
    seed: int
    data: str | None
    window: int | None
    drawn: dict[str, int]
    reference: str | None
    engines: tuple[EngineReport, ...]
    confidence: float = CONFIDENCE

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def of(self, engine: EngineReport) -> Report:
        """Return the same report with one engine alone."""
        return dataclasses.replace(self, engines=(engine,))
