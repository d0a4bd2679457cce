"""`enginewright inspect`: describes an engine directory."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from enginewright.plugins.ops.registry import OPS
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Cache, Condition, Graph, Manifest
from enginewright.runtime.artifact.stored_codes import CODES, codes_lines
from enginewright.runtime.artifact.value_ranges import MOST_CONTEXT
from enginewright.runtime.cache.capacity import EXACT_TILES, copies_bytes, queries_bytes, request_bytes
from enginewright.runtime.cache.policy import COMPACT, TokenPolicy, governed_layers, open_policy, policy_line
from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.tokenizer import Tokenizer

_GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("engine", metavar="DIR", help="engine directory")
    parser.add_argument(
        "--memory", type=float, default=1.0, metavar="GIB", help="of the cache, to say what it holds (1)"
    )
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a request in it (the engine's limit)")
    parser.add_argument(
        "--verify", action="store_true", help="also compare every file with its checksum, as loading does"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the description."""
    root = Path(arguments.engine)
    manifest = directory.load(root, verify=arguments.verify)
    limit = manifest.limits.max_context
    if arguments.context is not None and not 1 <= arguments.context <= limit:
        raise RequestError(f"--context: got {arguments.context}, expected 1 to {limit}, the engine's limit")
    if not 0 < arguments.memory < math.inf:
        raise RequestError(f"--memory: got {arguments.memory}, expected a positive number of GiB")
    description = describe(manifest, memory=int(arguments.memory * _GIB), context=arguments.context or limit)
    description["verified"] = arguments.verify
    description["chat_templates"] = Tokenizer.load_templates(root, manifest).reads()
    if arguments.json:
        print(json.dumps(description, indent=2))
    else:
        print("\n".join(_lines(description)))
    return 0


def describe(manifest: Manifest, *, memory: int, context: int) -> dict[str, Any]:
    """Return the description in plain JSON values, with the number of requests of `context` tokens that `memory` bytes hold."""
    model, limits = manifest.model, manifest.limits
    return {
        "name": manifest.name,
        "created_by": manifest.created_by,
        "model": f"{model.family}, {_count(model.parameters)} parameters, vocabulary {model.vocab_size}",
        "limits": f"{limits.max_batch} requests at once, {limits.max_context} tokens each",
        "has_tokenizer": bool(manifest.tokenizer),
        "end_tokens": list(model.eos_token_ids),
        "generation": manifest.generation.given,
        "decoding": manifest.decoding,
        "weights": manifest.weights,
        "applied": list(manifest.applied),
        "conditions": {name: _describe_condition(condition) for name, condition in manifest.conditions.items()},
        "cache": _describe_cache(manifest, memory, context),
        "graphs": {name: _describe_graph(graph) for name, graph in manifest.graphs.items()},
        "files": {file.path: file.size for file in manifest.files()},
        "total_bytes": sum(file.size for file in manifest.files()),
    }


def _describe_cache(manifest: Manifest, memory: int, context: int) -> dict[str, Any]:
    """Return the bytes of a token in layers that keep all tokens, the further bytes of a request, and what memory holds."""
    cache, copies = manifest.cache, copies_bytes(manifest.cache, manifest.limits.max_context)
    full = [layer for layer in cache.layers if not layer.window]
    windowed = [layer for layer in cache.layers if layer.window]
    per_token = sum(layer.kv_heads * layer.tile_bytes for layer in full) // cache.tile_tokens
    halves = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) * 2 for layer in full)
    per_row = sum(
        layer.kv_heads * layer.tile_bytes * ((layer.window + cache.tile_tokens - 2) // cache.tile_tokens + 1)
        for layer in windowed
    )
    return {
        "kind": cache.kind,
        "policy": cache.policy,
        "kv_bits": cache.kv_bits,
        "layers": len(cache.layers),
        "windowed_layers": len(windowed),
        "encoded_layers": sum(layer.exact_bytes > 0 for layer in cache.layers),
        "bytes_per_token": per_token,
        "times_under_16_bits": round(halves / per_token, 2) if per_token else None,
        "windowed_bytes_per_request": per_row,
        "exact_bytes_per_request": sum(
            layer.exact_tiles * layer.kv_heads * layer.exact_bytes for layer in cache.layers
        ),
        "tokens_per_gib": _GIB // per_token if per_token else None,
        "memory": memory,
        "context": context,
        "requests": max(memory - copies, 0) // request_bytes(cache, context, prompt_tokens=0),
        "evicting": _describe_eviction(cache, context, copies),
    }


def _describe_eviction(cache: Cache, context: int, copies: int) -> dict[str, Any] | None:
    """Return what a request of `context` tokens takes under the cache's policy, in bytes; None without one.

    copies: bytes of the tiles for copies.
    """
    policy = open_policy(cache)
    if policy is None:
        return None
    governed = [cache.layers[index] for index in governed_layers(cache)]
    plain = [
        dataclasses.replace(layer, exact_tiles=EXACT_TILES, query_heads=0, held_queries=0, marks=0)
        for layer in cache.layers
    ]
    kept, whole = None, 0
    if COMPACT in policy.needs:
        heads = np.array([layer.kv_heads for layer in governed], np.int64)
        has = np.arange(heads.max()) < heads[:, None]
        evicts = has & (policy.most_stored(0, MOST_CONTEXT) < MOST_CONTEXT)
        whole = int((has & ~evicts).sum())
        kept = (cast(TokenPolicy, policy).most_kept() // np.maximum(evicts.sum(axis=1), 1)).tolist()
    return {
        "tokens_per_head": kept,
        "heads": sum(layer.kv_heads for layer in governed),
        "whole_heads": whole,
        "bytes_per_request": request_bytes(cache, context, prompt_tokens=0),
        "bytes_with_whole_prompt": request_bytes(cache, context),
        "bytes_without_policy": request_bytes(dataclasses.replace(cache, policy={}, layers=tuple(plain)), context),
        "queries_bytes_per_request": sum(map(queries_bytes, governed)),
        "marks_bytes_per_token": sum(4 * layer.kv_heads * layer.marks for layer in governed),
        "copies_bytes": copies,
    }


def _describe_condition(condition: Condition) -> dict[str, Any]:
    return {
        "per": condition.per,
        "applies": condition.applies,
        "capacity": condition.capacity,
        "scaled": condition.scaled,
        "entries": list(condition.entries),
        "vectors": None if condition.vectors is None else dataclasses.asdict(condition.vectors),
        "adapters": None if condition.adapters is None else dataclasses.asdict(condition.adapters),
    }


def _describe_graph(graph: Graph) -> dict[str, Any]:
    return {
        "inputs": [spec.name for spec in graph.inputs],
        "ops": {name: _describe_op(name, version) for name, version in graph.ops.items()},
        "engines": [
            {"backend": e.backend, "version": e.version, "compute": e.compute, "file": e.files[0].path}
            for e in graph.engines
        ],
    }


def _describe_op(name: str, version: int) -> str:
    installed = OPS[name].version if name in OPS else None
    return f"version {version}" if installed == version else f"version {version}, installed is {installed or 'none'}"


def _count(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _bytes(size: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size} bytes"


def _lines(description: dict[str, Any]) -> list[str]:
    """Return the description as lines to read."""
    cache = description["cache"]
    methods = [dict(method) for method in description["applied"]]
    lines = [
        f"{description['name']}  ({_bytes(description['total_bytes'])}, by {description['created_by']})",
        f"  model     {description['model']}",
        f"  limits    {description['limits']}",
        f"  ends with {', '.join(map(str, description['end_tokens'])) or 'no token'}",
        *([] if description["has_tokenizer"] else ["  tokenizer none: it takes and gives token ids alone"]),
        *([f"  defaults  {_pairs(description['generation'])}"] if description["generation"] else []),
        *(f"  chat      {name} reads {', '.join(reads)}" for name, reads in description["chat_templates"].items()),
        f"  decoding  {_pairs(description['decoding'])}",
        f"  weights   {_pairs({key: value for key, value in description['weights'].items() if key != CODES})}",
        *(f"  codes     {line}" for line in codes_lines(description["weights"])),
        *(f"  method    {method.pop('name', '?')}  {_pairs(method)}" for method in methods),
        *(f"  condition {name}: {_condition_line(each)}" for name, each in description["conditions"].items()),
        *_cache_lines(cache),
    ]
    for name, graph in description["graphs"].items():
        lines.append(f"  graph     {name}: {', '.join(f'{op} {state}' for op, state in graph['ops'].items())}")
        lines += [f"    engine  {e['file']}: {e['backend']} {e['version']}, {e['compute']}" for e in graph["engines"]]
    lines += [f"  file      {path}  {_bytes(size)}" for path, size in description["files"].items()]
    checked = (
        "compared with their checksums"
        if description["verified"]
        else "not compared with their checksums; --verify does"
    )
    return [*lines, f"  files     sizes are right, contents {checked}"]


def _cache_lines(cache: dict[str, Any]) -> Iterator[str]:
    bits = f"{cache['kv_bits']} bits" if not cache["encoded_layers"] else f"{cache['kv_bits']} bits where not encoded"
    yield f"  cache     {cache['kind']}, {bits}, {cache['layers']} layers"
    if cache["bytes_per_token"]:
        ratio = f" ({cache['times_under_16_bits']} times fewer than 16-bit ones)" if cache["encoded_layers"] else ""
        yield f"            {cache['bytes_per_token']} bytes per token{ratio}, {cache['tokens_per_gib']} tokens per GiB"
    if cache["policy"]:
        yield f"            policy {policy_line(cache['policy'])}"
        yield from _eviction_lines(cache["evicting"], cache["context"])
    if cache["exact_bytes_per_request"]:
        exact = _bytes(cache["exact_bytes_per_request"])
        yield f"            {exact} per request for the first and the newest tokens, which are not encoded"
    if cache["windowed_layers"]:
        bound = _bytes(cache["windowed_bytes_per_request"])
        yield f"            {cache['windowed_layers']} windowed layers, {bound} per request at most"
    yield f"            {_bytes(cache['memory'])} hold {cache['requests']} requests of {cache['context']} tokens"


def _eviction_lines(evicting: dict[str, Any], context: int) -> Iterator[str]:
    if kept := evicting["tokens_per_head"]:
        some = [count for count in kept if count] or [0]  # a layer without any has no head that evicts
        of_layers = str(min(some)) if min(some) == max(some) else f"{min(some)} to {max(some)}, by layer,"
        whole, heads = evicting["whole_heads"], evicting["heads"]
        of_heads = f"{heads - whole} of {heads} heads, and all of the others" if whole else "each head, on average"
        yield f"            keeps {of_layers} tokens of {of_heads}"
    most, full = _bytes(evicting["bytes_per_request"]), _bytes(evicting["bytes_without_policy"])
    yield f"            {most} at most for an answer of {context} tokens, {full} without the policy"
    if evicting["bytes_with_whole_prompt"] > evicting["bytes_per_request"]:
        yield f"            {_bytes(evicting['bytes_with_whole_prompt'])} while a prompt of as many is read"
    if size := evicting["queries_bytes_per_request"]:
        yield f"            {_bytes(size)} per request for the newest queries"
    if size := evicting["marks_bytes_per_token"]:
        yield f"            {size} bytes per token for marks"
    if size := evicting["copies_bytes"]:
        yield f"            {_bytes(size)} once for the copies of an eviction"


def _condition_line(condition: dict[str, Any]) -> str:
    factor = ", with a factor" if condition["scaled"] else ""
    tokens = "all tokens" if condition["applies"] == "all" else "decoded tokens"
    named = ", ".join(condition["entries"]) or "none yet"
    vectors, adapters = condition["vectors"], condition["adapters"]
    added = "" if vectors is None else f", vectors at {vectors['at']} of {len(vectors['layers'])} layers"
    if adapters is not None:
        added = f", adapters of rank {adapters['rank']} for {', '.join(adapters['targets'])}"
    return f"per {condition['per']}{factor}{added}, for {tokens}; {condition['capacity']} entries at most: {named}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "as in the graph"
