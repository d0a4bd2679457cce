"""Runs the same problems over each cache, greedy, in flight together, and counts right answers."""

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
class Cache:
    """A cache under comparison: of `engine`, quantised by `codec` or, without one, as the engine itself keeps it."""

    name: str
    engine: Path
    manifest: Manifest
    codec: Codec | None = None

    @property
    def bits(self) -> tuple[float, float]:
        """Stored bits of a key's and of a value's element; of a real engine's encoded tile their mean, twice."""
        layer = self.manifest.cache.layers[0]
        if self.codec is not None:
            return self.codec.bits_per_element(layer.key_dim, layer.value_dim)
        mean = 8 * self.bytes_per_token / (layer.key_dim + layer.value_dim)
        return mean, mean

    @property
    def bytes_per_token(self) -> float:
        """Stored bytes of one token in one KV head, in a tile that is quantised."""
        layer = self.manifest.cache.layers[0]
        if self.codec is not None:
            return self.codec.bytes_per_token(layer.key_dim, layer.value_dim)
        return layer.tile_bytes / self.manifest.cache.tile_tokens


@dataclass(frozen=True, kw_only=True)
class Result:
    """Answers over one cache. codec_seconds: of `seconds`, spent on quantising tiles."""

    cache: Cache
    kinds: tuple[str, ...]
    answers: Answers
    codec_seconds: float

    @property
    def right(self) -> list[bool]:
        """Of each problem."""
        return [answer.correct for answer in self.answers.answers]

    @property
    def cut(self) -> int:
        """Replies that ran into their limit of tokens."""
        return sum(answer.finish_reason == "length" for answer in self.answers.answers)

    def accuracy(self) -> Estimate:
        """Share of right answers."""
        return intervals.wilson(sum(self.right), len(self.right))

    def accuracy_by_kind(self) -> dict[str, Estimate]:
        """Share of right answers of each kind."""
        total, right = Counter(self.kinds), Counter(k for k, r in zip(self.kinds, self.right, strict=True) if r)
        return {kind: intervals.wilson(right[kind], count) for kind, count in total.items()}


def measure(
    caches: Sequence[Cache], questions: Sequence[Question], *, threads: int | None, max_batch: int
) -> Iterator[Result]:
    """Yield the result of each cache, one engine loaded after another."""
    for cache in caches:
        with open_cache(cache, threads=threads, max_batch=max_batch) as llm:
            answers = ask(llm, questions, cache.name)
            session = llm.loop.session
            spent = session.codec_seconds if isinstance(session, QuantisedSession) else 0.0
        kinds = tuple(question.problem.kind for question in questions)
        yield Result(cache=cache, kinds=kinds, answers=answers, codec_seconds=spent)


def open_cache(cache: Cache, *, threads: int | None, max_batch: int) -> LLM:
    """Load the cache's engine: simulated over a plain one, else as it is."""
    if cache.manifest.cache.kind == "paged":
        return open_quantised(cache.engine, cache.codec, threads=threads, max_batch=max_batch)
    return load(cache.engine, threads, max_batch=max_batch, prefill_chunk=CHUNK, prefix_reuse=False, verify=False)


def compare(ours: Result, theirs: Result) -> tuple[Estimate, float]:
    """Accuracy of ours minus theirs with Newcombe's paired interval, and McNemar's exact probability."""
    pairs = list(zip(ours.right, theirs.right, strict=True))
    return intervals.paired_difference(pairs), intervals.mcnemar(pairs)


def replies_alike(ours: Result, theirs: Result) -> float:
    """Share of problems with the same reply, token for token."""
    pairs = zip(ours.answers.answers, theirs.answers.answers, strict=True)
    return sum(a.tokens == b.tokens for a, b in pairs) / len(ours.right)
