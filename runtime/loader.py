"""Opens an engine directory: checks it, chooses the backend, plans the memory, and returns the LLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.backend import Backend
from enginewright.runtime.backends.conditions import fill_entries
from enginewright.runtime.backends.registry import choose_backend
from enginewright.runtime.cache.capacity import Capacity, cache_bytes, plan_capacity
from enginewright.runtime.cache.open_tables import open_tables
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.cache.policy import check_policy
from enginewright.runtime.decoding.kind import DecodingKind
from enginewright.runtime.decoding.processor_kind import open_processors
from enginewright.runtime.decoding.registry import find_kind
from enginewright.runtime.errors import ArtifactError, RequestError
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.resolved_sampling import resolve
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step_loop import StepLoop
from enginewright.runtime.text.tokenizer import Tokenizer

_MOST = {"threads": 4096, "cache_tokens": 1 << 48, "prefill_chunk": 1 << 20}
"""The largest values of the options of `load`: a step's arrays are as long as a chunk, and each thread has a stack."""


def load(
    path: str | Path,
    threads: int | None = None,
    *,
    max_batch: int | None = None,
    cache_tokens: int | None = None,
    prefill_chunk: int = 512,
    prefix_reuse: bool = True,
    verify: bool = True,
    backend: str | None = None,
) -> LLM:
    """Open the engine directory at `path`.

    threads: threads of the backend; default: the physical cores.
    max_batch: requests that run at once; default and upper limit: the engine's.
    cache_tokens: tokens in the cache, over all running requests; default: as many as they can use, or as half of the
        available memory holds.
    prefill_chunk: the most tokens of one step; with a KVarN cache, the tokens of a prompt that see each other exactly,
        rounded down to whole tiles.
    prefix_reuse: whether a prompt takes over what an earlier prompt with the same beginning has computed, as long as that
        is in the cache: whole tiles of it, with a KVarN cache whole chunks of prefill_chunk. Layers with sliding windows
        rule it out.
    verify: whether every file is compared with its sha256.
    backend: the directory's engine to run; "onnxruntime" runs the graph itself where no engine was built for it. Default:
        the first of tensorrt, tensorrt-rtx, onnxruntime-cuda and onnxruntime that can run on this machine.

    Raises:
        ArtifactError: no engine, a damaged one, or one that this version cannot run.
        UnsupportedError: no library, or no GPU, for an engine that was built for one.
        RequestError: a parameter is out of range.
    """
    root = Path(path)

    def read() -> tuple[Manifest, Tokenizer | None, StepLoop, Capacity]:
        manifest = directory.load(root, verify=verify)
        _check_manifest(root, manifest)
        _check_defaults(root, manifest)
        kind = find_kind(manifest)
        tokenizer = Tokenizer.load(root, manifest)
        _check_options(threads=threads, cache_tokens=cache_tokens, prefill_chunk=prefill_chunk)
        chosen = choose_backend(manifest, threads, backend)
        capacity = plan_capacity(
            manifest,
            chosen.free_bytes(manifest),
            max_batch=max_batch,
            cache_tokens=cache_tokens,
            prefill_chunk=prefill_chunk,
            prefix_reuse=prefix_reuse,
            width=kind.width(manifest.decoding),
        )
        return manifest, tokenizer, _open_loop(root, manifest, chosen, capacity, kind), capacity

    manifest, tokenizer, loop, capacity = directory.settled(root, read)
    return LLM(manifest, tokenizer, loop, capacity)


def _open_loop(root: Path, manifest: Manifest, backend: Backend, capacity: Capacity, kind: DecodingKind) -> StepLoop:
    """Open the graph with its cache, and return the loop that serves requests with it."""
    try:
        tables = open_tables(manifest.cache, capacity)
        session = backend.open(root, manifest, tables, capacity)
        fill_entries(root, manifest, session)
    except MemoryError as e:
        size = cache_bytes(manifest.cache, capacity.tiles, capacity.rows) / 2**30
        raise RequestError(f"load: no memory for a cache of {size:.1f} GiB; pass a smaller cache_tokens") from e
    check_policy(manifest.cache, session.offers, tokens_a_step=capacity.width, takes_back=manifest.takes_back)
    decoder = kind.open(manifest.decoding, Pieces(chunk=capacity.chunk, tile_tokens=manifest.cache.tile_tokens))
    return StepLoop(Scheduler(tables, capacity, decoder, manifest.conditions), session)


def _check_options(**given: int | None) -> None:
    """Raise RequestError for an option of `load` that is out of range."""
    for name, value in given.items():
        if value is not None and not 1 <= value <= _MOST[name]:
            expected = "1 or more" if value < 1 else f"{_MOST[name]} at most"
            raise RequestError(f"load: {name}: got {value}, expected {expected}")


def _check_manifest(root: Path, manifest: Manifest) -> None:
    if "decoder" not in manifest.graphs:
        known = ", ".join(manifest.graphs) or "none"
        raise ArtifactError(f"{root}: got graphs {known}, expected one named 'decoder'; build the engine again")
    expected = manifest.limits.max_context if manifest.cache.is_dense else TILE_TOKENS
    if manifest.cache.tile_tokens != expected:
        got = manifest.cache.tile_tokens
        raise ArtifactError(f"{root}: got tiles of {got} tokens, expected {expected}; build the engine again")


def _check_defaults(root: Path, manifest: Manifest) -> None:
    """Raise ArtifactError where no request could be served with the model's own defaults."""
    try:
        sampling = resolve(Sampling(), manifest.generation)
        open_processors(sampling, np.zeros(1, np.int64), manifest.model.vocab_size)
    except RequestError as e:
        raise ArtifactError(f"{root}: generation: {e}; build the engine again") from e
