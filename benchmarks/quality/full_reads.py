"""Texts as an engine with the full cache reads them: logits, and the attention of sampled queries, in a folder that keeps them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality.attention_inputs import TappedSession, write_tapped_engine
from benchmarks.quality.cache_codecs import Floats
from benchmarks.quality.kept_attention import Ints, WatchKept, attention_weights, sample_queries
from benchmarks.quality.token_scores import Logits
from enginewright.runtime.backends.onnxruntime.cpu_session import CpuSession
from enginewright.runtime.errors import UnsupportedError
from enginewright.runtime.evaluation.texts import Text
from enginewright.runtime.llm import LLM
from enginewright.runtime.loader import load

BLOCK, QUERIES = 512, 8  # so many queries are drawn from each block of positions


@dataclass(frozen=True, kw_only=True)
class FullRead:
    """A text as the full cache reads it; `read_full` creates it.

    logits: [n, vocabulary], of which those of the second half are written.
    queries: [s], the positions of the sampled queries.
    weights: [layers, KV heads, s, n], their attention.
    peak: the most bytes of tiles that were held.
    """

    logits: Logits
    queries: Ints
    weights: Floats
    peak: int


def second_half(text: Text) -> int:
    """The first position that counts."""
    return len(text.tokens) // 2


def read_full(engine: Path, texts: Sequence[Text], folder: Path, threads: int) -> list[FullRead]:
    """Read the texts, unless `folder` has what an earlier run read."""
    names = [hashlib.sha256(np.array(text.tokens, np.int64).tobytes()).hexdigest()[:16] for text in texts]
    files = [folder / f"{name}.npz" for name in names]
    if not all(file.is_file() for file in files):
        copy = folder / "tapped"
        shutil.rmtree(copy, ignore_errors=True)  # of a run that was stopped
        scales = write_tapped_engine(engine, copy)
        with load(copy, threads, max_batch=1, prefix_reuse=False, verify=False) as llm:
            taps, watch = _tap(llm), WatchKept(llm)
            for text, file in zip(texts, files, strict=True):
                if not file.is_file():
                    watch.peak = 0
                    weights = _read(llm, taps, text, scales, file.with_suffix(".float32"))
                    staged = file.with_suffix(".part.npz")
                    np.savez(staged, weights=weights, peak=watch.peak)
                    staged.replace(file)
        shutil.rmtree(copy)
    return [_open(text, file) for text, file in zip(texts, files, strict=True)]


def _read(llm: LLM, taps: TappedSession, text: Text, scales: Sequence[float], file: Path) -> Floats:
    """Read a text; write the logits of its second half, and return the attention of its sampled queries."""
    half = second_half(text)
    logits = np.memmap(file, np.float32, "w+", shape=(len(text.tokens) - 1, llm.manifest.model.vocab_size))

    def keep(position: int, piece: Logits) -> None:
        skipped = max(half - position, 0)
        logits[position + skipped : position + len(piece)] = piece[skipped:]

    taps.taken.clear()
    llm.score([text.tokens[:-1]], [keep])
    logits.flush()
    positions = _queries_of(text)
    weights = []
    for layer, scale in enumerate(scales):
        query, key = (np.concatenate([step[layer][each] for step in taps.taken]) for each in (0, 1))
        halves = key.astype(np.float16).astype(np.float32)  # as the cache holds them
        weights.append(attention_weights(query[positions], halves, positions, scale))
    return np.stack(weights)


def _open(text: Text, file: Path) -> FullRead:
    size = len(text.tokens) - 1
    logits = np.memmap(file.with_suffix(".float32"), np.float32, "r").reshape(size, -1)
    with np.load(file) as kept:
        return FullRead(logits=logits, queries=_queries_of(text), weights=kept["weights"], peak=int(kept["peak"]))


def _queries_of(text: Text) -> Ints:
    return sample_queries(second_half(text), len(text.tokens) - 1, BLOCK, QUERIES, text.draw)


def _tap(llm: LLM) -> TappedSession:
    """Let a tapped engine record its attention; return what holds it."""
    if any(layer.window for layer in llm.manifest.cache.layers):
        raise UnsupportedError("evicted_texts: got layers with windows, expected none; choose another model")
    assert isinstance(llm.loop.session, CpuSession)
    taps = TappedSession(llm.loop.session, llm.capacity.step_tokens)
    llm.loop.session = taps
    return taps
