"""The report of an evaluation: estimates with intervals, the same for the same seed, times in their own object."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.evaluation.intervals import CONFIDENCE, Estimate
from enginewright.runtime.evaluation.report.memory_traffic import Traffic


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers, over all problems and per kind. finish_reasons: how many replies ended how.

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
    """Of the scored texts. nats: per token; perplexity: their exponential; bits_per_byte: per byte of UTF-8."""

    tokens: int
    nats: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """With the reference engine.

    mean_kl: KL(reference || engine) in nats per token, teacher-forced, over the reference's own replies, or the scored
    texts; worst_kl: the mean of the worst 5 % of tokens. top1: share of tokens with the same most probable token.
    For suites that are asked: answers: share of problems with the same final answer; never_parts: share of replies that
    are the same token for token; parts_after: median of equal tokens before the others part, None where all are the same.
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
    """An engine's measure minus that of the engine `against`, on the same problems or texts.

    differs: whether the interval leaves out 0; otherwise no difference is shown. mcnemar: for accuracy, the exact
    probability of answers so unlike if both were equally good.
    """

    against: str
    measure: str
    estimate: Estimate
    differs: bool
    mcnemar: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Depends on the machine and its load, as nothing else in a report does.

    tokens_per_second: generated, prompts computed on the way; or read, where texts are scored. All requests together.
    """

    seconds: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """One engine. weights, kv_bits, applied: as in its manifest. traffic: bytes read per token."""

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
        """Overall accuracy, or perplexity."""
        if self.accuracy is not None:
            return self.accuracy.overall
        assert self.likelihood is not None
        return self.likelihood.perplexity


@dataclass(frozen=True, kw_only=True)
class Report:
    """One evaluation. drawn: how many problems or texts of each kind. reference: the engine others are compared with."""

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
        """Return the whole report."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def of(self, engine: EngineReport) -> Report:
        """Return the report about one engine alone."""
        return dataclasses.replace(self, engines=(engine,))
