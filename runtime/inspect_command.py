"""`enginewright inspect`: what an engine directory holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from enginewright.plugins.ops import OPS
from enginewright.runtime import artifact
from enginewright.runtime.artifact import Cache, Graph, Manifest

_GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("engine", metavar="DIR", help="engine directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the description."""
    description = describe(artifact.load(Path(arguments.engine), verify=False))
    if arguments.json:
        print(json.dumps(description, indent=2))
    else:
        print("\n".join(_lines(description)))
    return 0


def describe(manifest: Manifest) -> dict[str, Any]:
    """Return what the engine is, in plain JSON values."""
    model, limits = manifest.model, manifest.limits
    return {
        "name": manifest.name,
        "created_by": manifest.created_by,
        "model": f"{model.family}, {_count(model.parameters)} parameters, vocabulary {model.vocab_size}",
        "limits": f"{limits.max_batch} requests at once, {limits.max_context} tokens each",
        "decoding": manifest.decoding,
        "weights": manifest.weights,
        "applied": list(manifest.applied),
        "cache": _describe_cache(manifest.cache),
        "graphs": {name: _describe_graph(graph) for name, graph in manifest.graphs.items()},
        "files": {file.path: file.size for file in manifest.files()},
        "total_bytes": sum(file.size for file in manifest.files()),
    }


def _describe_cache(cache: Cache) -> dict[str, Any]:
    """Return the cost of a token in layers that keep all of them, and the bound of a row in windowed layers."""
    full = [layer for layer in cache.layers if not layer.window]
    windowed = [layer for layer in cache.layers if layer.window]
    per_token = sum(layer.kv_heads * layer.tile_bytes for layer in full) // cache.tile_tokens
    per_row = sum(
        layer.kv_heads * layer.tile_bytes * ((layer.window + cache.tile_tokens - 2) // cache.tile_tokens + 1)
        for layer in windowed
    )
    return {
        "kind": cache.kind,
        "kv_bits": cache.kv_bits,
        "layers": len(cache.layers),
        "windowed_layers": len(windowed),
        "bytes_per_token": per_token,
        "windowed_bytes_per_request": per_row,
        "tokens_per_gib": _GIB // per_token if per_token else None,
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
        f"  decoding  {_pairs(description['decoding'])}",
        f"  weights   {_pairs(description['weights'])}",
        *(f"  method    {method.pop('name', '?')}  {_pairs(method)}" for method in methods),
        f"  cache     {cache['kind']}, {cache['kv_bits']} bits, {cache['layers']} layers, "
        f"{cache['bytes_per_token']} bytes per token, {cache['tokens_per_gib']} tokens per GiB",
    ]
    if cache["windowed_layers"]:
        bound = _bytes(cache["windowed_bytes_per_request"])
        lines.append(f"            {cache['windowed_layers']} windowed layers, {bound} per request at most")
    for name, graph in description["graphs"].items():
        lines.append(f"  graph     {name}: {', '.join(f'{op} {state}' for op, state in graph['ops'].items())}")
        lines += [f"    engine  {e['file']}: {e['backend']} {e['version']}, {e['compute']}" for e in graph["engines"]]
    return [*lines, *(f"  file      {path}  {_bytes(size)}" for path, size in description["files"].items())]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "as in the graph"
