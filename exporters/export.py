"""Exports a checkpoint by a recipe: writes an engine directory with the decoder's graph, and streams the weights to disk."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from enginewright.exporters.capture.attention_hook import ATTENTION
from enginewright.exporters.capture.cache_formats import CacheFormat, PagedCacheFormat
from enginewright.exporters.capture.capture import Captured, capture
from enginewright.exporters.capture.torch_export import fewer_collections
from enginewright.exporters.methods import registry
from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.passes.lower_to_standard import LowerToStandardPass
from enginewright.exporters.passes.narrow_activations import DTYPES, NarrowActivationsPass
from enginewright.exporters.passes.pipeline import attach_weights, rewrite
from enginewright.exporters.passes.quantize_weights import QuantizeWeightsPass
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.generation.defaults import read_defaults
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.rope_scaling import describe_fixed
from enginewright.exporters.source.skeleton import load_skeleton
from enginewright.exporters.source.tied import untie
from enginewright.exporters.tokenizer.engine_tokenizer import EngineTokenizer, read_tokenizer
from enginewright.exporters.weights.graph_weights import to_initializers
from enginewright.exporters.weights.registry import Storage
from enginewright.exporters.weights.weight import Weight
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import op_versions
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.decoder_graph import POOL
from enginewright.runtime.artifact.manifest import Cache, Condition, File, Graph, Limits, Manifest, Model, TensorSpec
from enginewright.runtime.artifact.sampling_ranges import is_number
from enginewright.runtime.artifact.value_ranges import MOST_WIDTH
from enginewright.runtime.artifact.version import package_version
from enginewright.runtime.errors import ExportError, UnsupportedError

GRAPHS = "graphs/{}.onnx"
OWN_PRODUCTS = "onnxruntime"
"""The backend whose engines multiply by our own kernels."""


@fewer_collections()
def export(model: str, root: Path, recipe: Recipe, *, strict: bool = False, backend: str = "") -> Manifest:
    """Write graphs/, tokenizer/ and the manifest of `model` under `root`, an empty directory.

    model: a checkpoint directory or hub id.
    strict: whether parts of the checkpoint that the engine does not use are an error; else they are named on standard error.
    backend: the only one that the graphs have to suit, if there is one; empty: as many as the recipe allows.

    Memory holds the graph and one weight at a time.

    Raises:
        ExportError, UnsupportedError: the reason. Nothing is written by then, unless a tensor turns out to be unreadable.
    """
    check_graphs(recipe)
    cache = _choose_cache(recipe)
    decoding = registry.choose_decoding(recipe.apply)
    checkpoint = open_checkpoint(model)
    registry.check_model(recipe.apply, checkpoint)
    conditions = _declare(recipe, checkpoint, cache)
    limits = _limits(checkpoint, recipe)
    skeleton = load_skeleton(checkpoint, attention=ATTENTION, max_context=limits.max_context)
    weights, storage = _bind(checkpoint, skeleton.model, recipe, backend)
    conditions = registry.name_model(recipe.apply, conditions, checkpoint, skeleton.model)
    entries = registry.condition_entries(recipe.apply, conditions)
    untie(skeleton.model, weights)
    tokenizer = read_tokenizer(checkpoint)
    generation = read_defaults(checkpoint, _eos_token_ids(checkpoint), has_tokenizer=tokenizer is not None)
    checkpoint.unused.settle(strict=strict)
    _announce(f"capturing the graph of {checkpoint.name} ({checkpoint.config.model_type})")
    captured = capture(skeleton, cache)
    attach_weights(captured, weights)
    rewrite(captured.model, registry.passes(recipe.apply))
    anchors = Anchors(captured.model.graph, checkpoint.config.model_type, len(captured.layers), conditions)
    registry.extend_graph(recipe.apply, anchors)
    graphs = {"decoder": captured.model, **registry.more_graphs(recipe.apply, anchors)}
    quantise = QuantizeWeightsPass(storage, for_cpu=recipe.for_cpu)
    quantise(captured.model)
    NarrowActivationsPass(recipe.dtype)(captured.model)
    described = _describe_cache(cache, captured)
    if recipe.plugins == "none":
        LowerToStandardPass(limits.max_context)(captured.model)
        described = _to_dense(described, limits.max_context)
    checkpoint.unused.save(root)
    manifest = Manifest(
        name=checkpoint.name,
        created_by=f"enginewright {package_version()}",
        model=_describe_model(checkpoint, captured),
        limits=limits,
        cache=described,
        generation=generation,
        graphs={name: _write_graph(graph, root, GRAPHS.format(name)) for name, graph in graphs.items()},
        decoding=decoding,
        weights=storage.describe(recipe.dtype, quantise.codes()),
        conditions=_write_entries(conditions, entries, root),
        token_inputs=cache.token_inputs,
        applied=tuple(method.describe() for method in recipe.apply),
        tokenizer=_write_tokenizer(tokenizer, root),
    )
    directory.save(manifest, root)
    return manifest


def check_graphs(recipe: Recipe) -> None:
    """Raise UnsupportedError where a method gives graphs of its own that do not fit the decoder's type."""
    name = registry.giving_graphs(recipe.apply)
    if name and recipe.dtype != "float32":
        raise UnsupportedError(
            f"dtype: got {recipe.dtype} with {name}, whose own graphs are for float32 engines on CPUs; build with dtype float32, "
            f"or without {name}"
        )


def _choose_cache(recipe: Recipe) -> CacheFormat:
    cache = registry.choose_cache(recipe.apply, PagedCacheFormat(recipe.kv_bits or 16))
    if recipe.plugins == "all":
        return cache
    if cache.kind != "paged":
        raise UnsupportedError(
            f"plugins none: got a {cache.kind} cache, which standard ops do not express; build without what adds it, or with "
            "plugins all"
        )
    if cache.policy or cache.token_inputs:
        got = f"the cache policy {cache.policy.get('kind')}" if cache.policy else ", ".join(cache.token_inputs)
        raise UnsupportedError(
            f"plugins none: got {got}, and a dense cache keeps every token of one row after another; build without what adds "
            "it, or with plugins all"
        )
    return PagedCacheFormat(recipe.cache_bits)


def _declare(recipe: Recipe, checkpoint: Checkpoint, cache: CacheFormat) -> dict[str, Condition]:
    """The conditions of a request; UnsupportedError for those of decoded tokens where tokens are decided in no order."""
    conditions = registry.conditions(recipe.apply, checkpoint)
    of_decoded = [name for name, each in conditions.items() if each.applies == "decoded"]
    if of_decoded and cache.sees_later:
        raise UnsupportedError(
            f"condition {of_decoded[0]!r}: got a model whose tokens see later ones, such as a diffusion model, expected one that "
            "decodes token after token: it applies from the prompt's last token on; build without the method that adds it"
        )
    return conditions


def _bind(
    checkpoint: Checkpoint, model: PreTrainedModel, recipe: Recipe, backend: str
) -> tuple[dict[str, Weight], Storage]:
    """The weights as the methods make them, and the form that stores them for `backend`."""
    restored = _restores(recipe)
    weights = bind_parameters(checkpoint, model, restored=restored)
    settled = recipe.weights.settled(has_codes=not restored and _has_codes(weights))
    storage = settled.for_backend(has_own_products=recipe.for_cpu and backend == OWN_PRODUCTS)
    return registry.transform_weights(recipe.apply, weights, checkpoint), storage


def _restores(recipe: Recipe) -> str:
    """Why codes that a checkpoint stores become numbers first, as a phrase; empty where they are kept."""
    if changing := registry.changing(recipe.apply):
        return f"{changing} changes weights"
    return "" if recipe.weights.form.keeps_stored else f"--weights {recipe.weights.kind} was asked for"


def _has_codes(weights: dict[str, Weight]) -> bool:
    """Whether a weight, or a part of one, is codes that the checkpoint stores."""
    parts = (part for weight in weights.values() for part in (weight, *weight.parts))
    return any(part.quantized is not None and part.stored is not None for part in parts)


def _announce(stage: str) -> None:
    """Tell a user at a terminal about a stage that takes a while."""
    if sys.stderr.isatty():
        print(f"{stage} ...", file=sys.stderr)


def _limits(checkpoint: Checkpoint, recipe: Recipe) -> Limits:
    longest = checkpoint.longest_context
    context = recipe.max_context or checkpoint.default_context
    if not context:
        raise ExportError(f"{checkpoint.path}: config.json names no longest context; pass --max-context")
    if longest and context > longest:
        raise ExportError(f"max_context: got {context}, expected at most {longest}, which the model was made for")
    if told := describe_fixed(checkpoint.config, context):
        print(told, file=sys.stderr)
    return Limits(max_batch=recipe.max_batch, max_context=context)


def _describe_cache(cache: CacheFormat, captured: Captured) -> Cache:
    return Cache(
        kind=cache.kind, tile_tokens=TILE_TOKENS, kv_bits=cache.bits, layers=captured.layers, policy=cache.policy
    )


def _to_dense(cache: Cache, length: int) -> Cache:
    """The same layers with one tile of `length` tokens in each row, and no windows, which the graph itself applies."""
    layers = (
        dataclasses.replace(layer, window=0, tile_bytes=length * (layer.key_dim + layer.value_dim) * cache.kv_bits // 8)
        for layer in cache.layers
    )
    return dataclasses.replace(cache, kind="dense", tile_tokens=length, layers=tuple(layers))


def _write_graph(model: ir.Model, root: Path, name: str) -> Graph:
    """Write a graph and its weights, and return the manifest's record of it."""
    to_initializers(model.graph)
    path = root / name
    _save_graph(model, path)
    files = [path, path.with_name(f"{path.name}.data")] if model.graph.initializers else [path]
    return Graph(
        files=tuple(directory.describe_file(root, each) for each in files),
        inputs=tuple(_describe_value(value) for value in model.graph.inputs),
        outputs=tuple(_describe_value(value) for value in model.graph.outputs),
        ops=op_versions(node.op_type for node in model.graph if node.domain == DOMAIN),
    )


def _save_graph(model: ir.Model, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    model.producer_name, model.producer_version = "enginewright", package_version()
    if not model.graph.initializers:
        ir.save(model, path)
        return
    with tqdm(unit="tensor", desc="writing weights", disable=None, leave=False) as bar:

        def advance(_: ir.TensorProtocol, info: ir.external_data.CallbackInfo) -> None:
            bar.total = info.total
            bar.update()

        ir.save(model, path, external_data=f"{path.name}.data", callback=advance, max_workers=1)


def _describe_model(checkpoint: Checkpoint, captured: Captured) -> Model:
    config = checkpoint.config
    return Model(
        family=config.model_type,
        vocab_size=int(config.vocab_size),
        hidden_size=int(config.hidden_size),
        max_positions=checkpoint.longest_context,
        parameters=sum(math.prod(p.shape) for p in captured.skeleton.model.parameters()),
        eos_token_ids=_eos_token_ids(checkpoint),
        bos_token_id=_bos_token_id(config),
    )


def _eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    found: Any = checkpoint.generation.get("eos_token_id")
    if found is None:
        found = getattr(checkpoint.config, "eos_token_id", None)  # some families have none
    if found is None:
        return ()
    tokens = found if isinstance(found, list) else [found]
    if not all(is_number(token, int) and token <= MOST_WIDTH for token in tokens):
        raise ExportError(
            f"{checkpoint.path}: eos_token_id: got {found!r}, expected a token id or a list of them; correct config.json or "
            "generation_config.json"
        )
    return tuple(token for token in tokens if token >= 0)  # some files have -1 for "none"


def _bos_token_id(config: PreTrainedConfig) -> int | None:
    found = getattr(config, "bos_token_id", None)  # some families have none, some files -1 or a list
    return found if type(found) is int and 0 <= found <= MOST_WIDTH else None


def _describe_value(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    dtype = next((name for name, dtype in DTYPES.items() if dtype is value.dtype), value.dtype.name.lower())
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    alias = value.name.removesuffix(".out") if value.name.startswith(POOL) and value.name.endswith(".out") else None
    return TensorSpec(name=value.name, dtype=dtype, shape=shape, alias=alias)


def _write_entries(
    conditions: dict[str, Condition], entries: dict[str, dict[str, dict[str, NDArray[Any]]]], root: Path
) -> dict[str, Condition]:
    """Write the entries that the engine has from the beginning, and return the conditions with their files."""
    described = dict(conditions)
    for name, given in entries.items():
        files: dict[str, File] = {}
        for entry, arrays in given.items():
            path = root / "conditions" / f"{name}.{entry}.npz"
            path.parent.mkdir(exist_ok=True)
            np.savez(path, **arrays)  # type: ignore[arg-type]  # of mypy: a tensor could be called allow_pickle
            files[entry] = directory.describe_file(root, path)
        described[name] = dataclasses.replace(conditions[name], entries=files)
    return described


def _write_tokenizer(tokenizer: EngineTokenizer | None, root: Path) -> tuple[File, ...]:
    written = () if tokenizer is None else tokenizer.write(root / "tokenizer")
    return tuple(directory.describe_file(root, path) for path in written)
