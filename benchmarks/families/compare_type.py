"""One model type of a sweep: a small checkpoint, an engine for each variant, and their verdicts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from benchmarks.families.capture_once import capture_once
from benchmarks.families.small_configs import small_config
from benchmarks.families.trained_looking import save_checkpoint
from benchmarks.families.variants import VARIANTS, Variant, engine_path
from benchmarks.families.verdicts import TypeResult, Verdict
from enginewright.exporters.build import build
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.supported_models import check_supported
from enginewright.plugins.ops.op import DOMAIN
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import EnginewrightError, ExportError, UnsupportedError
from enginewright.runtime.loader import load


def refusal_of(config: PreTrainedConfig) -> str:
    """The reason why the config is refused before any work; empty where it is not."""
    try:
        check_supported(config)
    except (UnsupportedError, ExportError) as e:
        return str(e)
    return ""


def try_type(model_type: str, names: Sequence[str]) -> TypeResult:
    """Build and check the variants of a model type; errors that are no refusals are raised.

    names: of the variants. The first one's refusal is the type's.
    """
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = small_config(model_type)
    if refusal := refusal_of(config):
        return TypeResult(model_type=model_type, refusal=refusal)
    with tempfile.TemporaryDirectory() as folder, capture_once():
        root = Path(folder)
        save_checkpoint(config, root / "model")
        verdicts: dict[str, Verdict] = {}
        reference: PreTrainedModel | None = None
        for name in names:
            variant = VARIANTS[name]
            try:
                _build(root, variant)
            except EnginewrightError as e:
                if reference is None:
                    return TypeResult(model_type=model_type, refusal=without_path(str(e), root))
                verdicts[name] = Verdict(kind="refused", told=without_path(str(e), root))
                continue
            reference = reference or load_reference(str(root / "model"), ())
            with load(engine_path(root, variant), threads=1, prefill_chunk=128) as llm:
                verdicts[name] = variant.check(llm, reference)
        traits = _traits(engine_path(root, VARIANTS[names[0]]), config)
    return TypeResult(model_type=model_type, traits=traits, variants=verdicts)


def _build(root: Path, variant: Variant) -> Manifest:
    return build(str(root / "model"), engine_path(root, variant), variant.recipe, "onnxruntime", trial="none")


def without_path(text: str, root: Path) -> str:
    """A message about the checkpoint root/model without its path."""
    return text.replace(f"{root}/model: ", "").replace(f"{root}/", "")


def _traits(engine: Path, config: PreTrainedConfig) -> tuple[str, ...]:
    """The parts of an engine's graph that not every model has."""
    manifest = directory.load(engine)
    nodes = list(ir.load(engine / manifest.graphs["decoder"].files[0].path).graph)
    layers, attentions = manifest.cache.layers, [node for node in nodes if "layer" in node.attributes]
    ops = {node.op_type for node in nodes}
    found = {
        "windows": any(layer.window for layer in layers) and all(layer.window for layer in layers),
        "windows and full attention": len({bool(layer.window) for layer in layers}) > 1,
        "unequal KV heads": len({(layer.kv_heads, layer.key_dim) for layer in layers}) > 1,
        "values of another width": any(layer.key_dim != layer.value_dim for layer in layers),
        "one KV head for all": {layer.kv_heads for layer in layers} == {1},
        "sinks": any(node.domain == DOMAIN and len(node.inputs) > 7 and node.inputs[7] for node in attentions),
        "softcap": any(node.attributes.get_float("softcap", 0.0) for node in attentions),
        "experts": "TopK" in ops,
        "LayerNorm": "LayerNormalization" in ops,
        "no rotary embedding": "RotaryEmbedding" not in ops and not ops & {"Sin", "Cos"},
        "tied output": bool(config.tie_word_embeddings),
    }
    return tuple(name for name, has in found.items() if has)
