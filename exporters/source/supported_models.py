"""Checks, from the config and before any work is done, whether a model can be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from enginewright.exporters.features.registry import read_features
from enginewright.exporters.source.multimodal.text_config import find_text_config, is_multimodal
from enginewright.exporters.source.quantized.refused_methods import describe_refusal
from enginewright.runtime.errors import ExportError, UnsupportedError

LAYER_TYPES = {"full_attention", "sliding_attention"}
MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,  # a part may need a library that is not there
    LookupError,
    MemoryError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers raises where it cannot make a config of its settings, or a model of a config."""


def check_supported_raw(raw: dict[str, Any], path: Path) -> None:
    """Refuse a config.json that transformers must not even read: remote code, unknown types, quantised weights."""
    where, family = path / "config.json", raw.get("model_type")
    if not isinstance(family, str):
        raise ExportError(f"{where}: got no model_type, expected the name of a model family")
    if family not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise UnsupportedError(f"{where}: {family!r} needs code from the checkpoint (auto_map), which is never run")
        raise UnsupportedError(f"{where}: model_type {family!r} is unknown to this version of transformers")
    parts = [raw, *(part for part in raw.values() if isinstance(part, dict))]
    if settings := next(filter(None, (part.get("quantization_config") for part in parts)), None):
        raise UnsupportedError(f"{where}: {describe_refusal(settings)}")


def check_supported(config: PreTrainedConfig) -> None:
    """Raise UnsupportedError with the reason unless `config` describes a decoder that the hook can capture.

    Of a multimodal model, its text part has to be one.

    Raises:
        ExportError: an attention feature that it asks for has a setting that is missing, unknown or out of range.
    """
    family = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"{family}: an encoder-decoder model; expected a decoder-only language model")
    if is_multimodal(config):
        text = find_text_config(config)
        try:
            check_supported(text)
        except (ExportError, UnsupportedError) as e:
            raise type(e)(f"{family}: its text part cannot be exported: {e}") from e
        return
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedError(f"{family}: transformers has no causal language model of this type")
    if config.to_dict().get("kv_lora_rank"):  # it may vary over the layers, and is then no attribute of the whole
        raise UnsupportedError(f"{family}: latent attention (MLA) keeps no keys and values per head to cache")
    other = sorted(set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES)
    if other:
        raise UnsupportedError(f"{family}: got {other[0]} layers, expected {' or '.join(sorted(LAYER_TYPES))}")
    if getattr(config, "attention_chunk_size", None):
        raise UnsupportedError(f"{family}: attention in chunks is not supported")
    read_features(config)
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if isinstance(found, tuple) or not found._supports_attention_backend:
        raise UnsupportedError(f"{family}: its attention cannot be replaced (state-space or its own attention code)")
