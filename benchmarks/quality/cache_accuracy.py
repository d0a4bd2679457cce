"""Answers the same problems over each cache, greedily and in flight together, and counts the right answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.cache_codecs import Codec
from benchmarks.quality.quantised_cache import CHUNK, QuantisedSession, open_quantised
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.answers import Answers, ask
from enginewright.runtime.evaluation.intervals import Estimate
from enginewright.runtime.evaluation.questions import Question
from enginewright.runtime.llm import LLM
from enginewright.runtime.loader import load


@dataclass(frozen=True, kw_only=True)
class ComparedCache:
    """A cache in the comparison.

    name: the name in tables.
    engine: the engine directory whose cache it is.
    codec: quantises the cache; None: the cache is as the engine itself keeps it.
    """

    name: str
    engine: Path
    manifest: Manifest
    codec: Codec | None = None

    @property
    def bits(self) -> tuple[float, float]:
        """Stored bits of a key's and of a value's element; for an engine's own encoded tile, their mean twice."""
        layer = self.manifest.cache.layers[0]
        if self.codec is not None:
            return self.codec.bits_per_element(layer.key_dim, layer.value_dim)
        mean = 8 * self.bytes_per_token / (layer.key_dim + layer.value_dim)
        return mean, mean

    @property
    def bytes_per_token(self) -> float:
        """Stored bytes of one token in one KV head, in a quantised tile."""
        layer = self.manifest.cache.layers[0]
        if self.codec is not None:
            return self.codec.bytes_per_token(layer.key_dim, layer.value_dim)
        return layer.tile_bytes / self.manifest.cache.tile_tokens


@dataclass(frozen=True, kw_only=True)
class CacheAnswers:
    """The answers over one cache; created by `measure`.

    kinds: the kind of each problem.
    codec_seconds: the part of `answers.seconds` that was spent on quantising tiles.
    """

    cache: ComparedCache
    kinds: tuple[str, ...]
    answers: Answers
    codec_seconds: float

    @property
    def right(self) -> list[bool]:
        """Whether the answer to each problem is right."""
        return [answer.correct for answer in self.answers.answers]

    @property
    def cut(self) -> int:
        """The number of replies that reached their limit of tokens."""
        return sum(answer.finish_reason == "length" for answer in self.answers.answers)

    def accuracy(self) -> Estimate:
        """The share of right answers, with Wilson's interval."""
        return intervals.wilson(sum(self.right), len(self.right))

    def accuracy_by_kind(self) -> dict[str, Estimate]:
        """The share of right answers for each kind of problem, with Wilson's interval."""
        total, right = Counter(self.kinds), Counter(k for k, r in zip(self.kinds, self.right, strict=True) if r)
        return {kind: intervals.wilson(right[kind], count) for kind, count in total.items()}


def measure(
    caches: Sequence[ComparedCache], questions: Sequence[Question], *, threads: int | None, max_batch: int
) -> Iterator[CacheAnswers]:
    """Yield the answers over each cache; engines are loaded one after another."""
    for cache in caches:
        with open_cache(cache, threads=threads, max_batch=max_batch) as llm:
            answers = ask(llm, questions, cache.name)
            session = llm.loop.session
            spent = session.codec_seconds if isinstance(session, QuantisedSession) else 0.0
        kinds = tuple(question.problem.kind for question in questions)
        yield CacheAnswers(cache=cache, kinds=kinds, answers=answers, codec_seconds=spent)


def open_cache(cache: ComparedCache, *, threads: int | None, max_batch: int) -> LLM:
    """Load the cache's engine; a plain cache is quantised in simulation, any other one runs as it is."""
    if cache.manifest.cache.kind == "paged":
        return open_quantised(cache.engine, cache.codec, threads=threads, max_batch=max_batch)
    return load(cache.engine, threads, max_batch=max_batch, prefill_chunk=CHUNK, prefix_reuse=False, verify=False)


def compare(ours: CacheAnswers, theirs: CacheAnswers) -> tuple[Estimate, float]:
    """The accuracy of ours minus that of theirs with Newcombe's paired interval, and McNemar's exact probability."""
    pairs = list(zip(ours.right, theirs.right, strict=True))
    return intervals.paired_difference(pairs), intervals.mcnemar(pairs)


def same_replies(ours: CacheAnswers, theirs: CacheAnswers) -> float:
    """The share of problems with the same reply, token for token."""
    pairs = zip(ours.answers.answers, theirs.answers.answers, strict=True)
    return sum(a.tokens == b.tokens for a, b in pairs) / len(ours.right)
