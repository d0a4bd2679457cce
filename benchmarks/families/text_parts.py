"""Multimodal types: small whole models that look trained, and an engine of the text part of each, next to the whole model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from benchmarks.families.compare_type import refusal_of, without_path
from benchmarks.families.small_configs import OVERRIDES, SIZES, published_config, text_sizes
from benchmarks.families.trained_looking import look_trained
from benchmarks.families.variants import VARIANTS
from benchmarks.families.verdicts import TypeResult
from enginewright.exporters.build import build
from enginewright.exporters.source.multimodal.text_config import find_class
from enginewright.exporters.source.multimodal.twins import TWINS
from enginewright.exporters.source.multimodal.whole_model import build_whole
from enginewright.runtime.errors import EnginewrightError, UnsupportedError
from enginewright.runtime.loader import load

VARIANT = "float32"
NEEDS_MORE = "its class takes no text alone, so that its language model in it is compared"

# Sizes of other parts, by the names that transformers uses most: few layers, whatever their width.
_OTHER_SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "depth": 2,
    "num_layers": 1,
    "encoder_layers": 1,
    "n_layers": 1,
    "intermediate_size": 64,
    "encoder_ffn_dim": 64,
    "num_filters": 2,
}
_QWEN_VISION = {"hidden_size": 64, "num_heads": 4, "out_hidden_size": SIZES["hidden_size"]}  # its merger is wide
# Further settings of other parts, by model type: without them its own class refuses the sizes.
_PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "fun_asr_nano": {
        "adaptor_config": {"hidden_size": SIZES["hidden_size"], "intermediate_size": SIZES["hidden_size"] // 4}
    },
    "qwen3_omni_moe": {
        "talker_config": {
            "spatial_merge_size": 2,
            "text_config": {"num_hidden_layers": 1, "shared_expert_intermediate_size": 64},
        },
    },
}


def small_whole_config(model_type: str) -> PreTrainedConfig:
    """Return a config of the type with a text part as those of `small_config`, and few layers in all other parts."""
    published = published_config(model_type)
    text = published.get_text_config()
    path = next(_paths(published, text))
    sizes = _small_parts(published, path, _text_settings(text))
    for name, settings in _PARTS.get(model_type, {}).items():
        sizes[name] = {**sizes[name], **settings}
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **sizes)
    return config


def _paths(config: PreTrainedConfig, text: PreTrainedConfig) -> Iterator[tuple[str, ...]]:
    """Yield the names of the parts that lead from `config` to `text`."""
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is text:
            yield (name,)
        elif isinstance(part, PreTrainedConfig):
            yield from ((name, *rest) for rest in _paths(part, text))


def _text_settings(text: PreTrainedConfig) -> dict[str, Any]:
    twin = TWINS.get(text.model_type)
    settings = text_sizes(text, OVERRIDES.get(twin.model_type if twin else text.model_type, {}))
    rope = getattr(text, "rope_parameters", None) or {}
    if twin is not None:
        rotated = (settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]) // 2
        third = rotated // 3
        settings["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": rope.get("rope_theta", 10000.0),
            "mrope_section": [rotated - 2 * third, third, third],
        }
    return {"model_type": text.model_type, **settings}


def _small_parts(config: PreTrainedConfig, path: tuple[str, ...], text: dict[str, Any]) -> dict[str, Any]:
    """The settings of the parts of `config`; `path` leads to the one that gets `text`."""
    found: dict[str, Any] = {}
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if not isinstance(part, PreTrainedConfig):
            continue
        if path[:1] == (name,):
            found[name] = text if len(path) == 1 else _small_parts(part, path[1:], text)
        else:
            stored = part.to_dict()
            known = {**_OTHER_SIZES, **(_QWEN_VISION if "out_hidden_size" in stored else {})}
            sizes = {key: value for key, value in known.items() if isinstance(stored.get(key), int)}
            found[name] = {"model_type": part.model_type, **sizes, **_small_parts(part, (), {})}
    return found


def try_text_part(model_type: str) -> TypeResult:
    """Build an engine of the text part of a small checkpoint of the type, and compare it with the whole model on text alone.

    Errors that are no refusals are raised.
    """
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if refusal := refusal_of(published_config(model_type)):
        return TypeResult(model_type=model_type, refusal=refusal)
    config, variant = small_whole_config(model_type), VARIANTS[VARIANT]
    try:
        found = build_whole(config)
    except EnginewrightError as e:
        return TypeResult(model_type=model_type, refusal=str(e))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = find_class(config)._from_config(  # type: ignore[no-untyped-call]
            copy.deepcopy(config), dtype=torch.float32, attn_implementation="eager"
        )
        look_trained(whole)
        whole.save_pretrained(root / "model")
        try:
            build(str(root / "model"), root / "engine", variant.recipe, "onnxruntime", trial="none")
        except EnginewrightError as e:
            return TypeResult(model_type=model_type, refusal=without_path(str(e), root))
        reference, told = _answering(whole, found.place)
        with load(root / "engine", threads=1, prefill_chunk=128) as llm:
            verdict = variant.check(llm, reference)
    traits = (found.text.model_type, told) if told else (found.text.model_type,)
    return TypeResult(model_type=model_type, traits=traits, variants={VARIANT: verdict})


def _answering(whole: PreTrainedModel, place: str) -> tuple[PreTrainedModel, str]:
    """Return the outermost module around the text part that answers to text alone, and a word where it is not the whole."""
    path = place.split(".")
    for length in range(len(path) + 1):
        module = whole.get_submodule(".".join(path[:length]))
        if not isinstance(module, PreTrainedModel) or module.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
            continue
        try:
            module(input_ids=torch.tensor([[3, 4, 5]]))
        except (TypeError, ValueError):  # it asks for images or sound
            continue
        return module, NEEDS_MORE if length and path[0] == "language_model" else ""
    raise UnsupportedError(f"{whole.config.model_type}: no part of it answers to text alone")
