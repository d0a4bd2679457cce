"""config.json of a GGUF checkpoint: transformers' reading of the metadata, and the keys that it passes over.

transformers leaves out scaled rotations, soft caps, windows, the widths of experts, biases and more; its config then has the
default of the family, and the model is another one. What no setting is made of is named, or refused where it must matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from enginewright.exporters.source.formats.gguf.header import Header
from enginewright.exporters.source.formats.gguf.rotation import read_rotation
from enginewright.exporters.source.formats.gguf.transformers_reading import (
    ARCHITECTURE,
    known_architectures,
    read_keys,
    read_settings,
)
from enginewright.exporters.source.supported_models import MODEL_ERRORS
from enginewright.runtime.errors import ExportError, UnsupportedError

# Keys without the architecture before them, and the settings that they may stand for: the first that the family has.
_SETTINGS = {
    "attention.key_length": ("head_dim",),
    "attention.sliding_window": ("sliding_window",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "context_length": ("max_position_embeddings", "n_positions"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
_BIASES = {"attention_bias": ".attn_q.bias", "mlp_bias": ".ffn_down.bias"}
_CHECKED = {"attention.value_length", "rope.dimension_count", "vocab_size", "tensor_data_layout"}
_LARGEST_GEMMA = {("gemma2", 46), ("gemma3", 62)}  # (architecture, layers) whose attention has a scale of its own


def read_config(header: Header) -> tuple[dict[str, Any], set[str]]:
    """Return the content of config.json, and the keys and tensors that it was made of.

    Raises:
        ExportError: the metadata are not whole, or contradict the tensors or themselves.
        UnsupportedError: transformers does not know the architecture, or the checkpoint has a part that it does not.
    """
    architecture = header.get(ARCHITECTURE)
    if architecture not in known_architectures():
        raise UnsupportedError(
            f"{header.file}: got architecture {architecture!r}, expected one that transformers reads from GGUF: "
            f"{', '.join(known_architectures())}"
        )
    _check_layers(header, architecture)
    try:
        settings = read_settings(header.metadata, tuple(header.tensors)) | _vocabulary(header, architecture)
        config: PreTrainedConfig = AutoConfig.for_model(**settings)
    except MODEL_ERRORS as e:
        raise ExportError(
            f"{header.file}: transformers cannot make a config of its metadata ({type(e).__name__}: {e}); the file is damaged"
        ) from e
    settings.pop("_model_name_or_path", None)
    used = {f"{architecture}.{key}" for key in read_keys(architecture)}
    used |= _complete(settings, header, architecture, config)
    rotation, rotation_keys = read_rotation(header, architecture, AutoConfig.for_model(**settings))
    if rotation:
        settings.pop("rope_theta", None)
        settings["rope_parameters"] = rotation
    final = AutoConfig.for_model(**settings)
    _check_widths(header, architecture, final)
    settings["architectures"] = list(_class_names(final))
    return settings, used | rotation_keys | {f"{architecture}.{key}" for key in _CHECKED}


def _complete(settings: dict[str, Any], header: Header, architecture: str, config: PreTrainedConfig) -> set[str]:
    """Add to `settings` what transformers passes over, and return the keys that were used."""
    used = set()
    for key, names in _SETTINGS.items():
        value = header.get(f"{architecture}.{key}")
        name = next((name for name in names if hasattr(config, name)), None)
        if value is not None and name is not None:
            settings[name] = value
            used.add(f"{architecture}.{key}")
    for name, ending in _BIASES.items():
        if hasattr(config, name) and any(tensor.endswith(ending) for tensor in header.tensors):
            settings[name] = True
    if hasattr(config, "num_key_value_heads"):
        settings.setdefault("num_key_value_heads", settings.get("num_attention_heads"))
    settings["tie_word_embeddings"] = "output.weight" not in header.tensors
    if hasattr(config, "query_pre_attn_scalar"):
        settings["query_pre_attn_scalar"] = _attention_width(header, architecture, config)
    return used


def _vocabulary(header: Header, architecture: str) -> dict[str, int]:
    """The size of the vocabulary: that of the metadata, or else of the embedding, which may have rows without a token."""
    embedding = header.tensors.get("token_embd.weight")
    size = header.get(f"{architecture}.vocab_size", embedding.shape[0] if embedding is not None else None)
    return {} if size is None else {"vocab_size": size}


def _attention_width(header: Header, architecture: str, config: PreTrainedConfig) -> Any:
    """The number whose root divides attention's scores: the head size; the largest Gemmas have the hidden size per head."""
    heads = header.get(f"{architecture}.attention.head_count")
    if (architecture, header.get(f"{architecture}.block_count")) in _LARGEST_GEMMA and heads:
        return header.get(f"{architecture}.embedding_length") // heads
    return header.get(f"{architecture}.attention.key_length", config.head_dim)


def _check_layers(header: Header, architecture: str) -> None:
    """Refuse a number of layers that the tensors are not of, before a model of that size is made, and unknown experts."""
    layers = header.get(f"{architecture}.block_count")
    numbers = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    stored = len(numbers)
    if layers != stored:
        raise ExportError(
            f"{header.file}: got tensors of {stored} layers, expected {layers} ({architecture}.block_count); download it again"
        )
    experts = f"{architecture}.expert_count"
    if header.get(experts) and "expert_count" not in read_keys(architecture):
        raise UnsupportedError(
            f"{header.file}: got {header.get(experts)} experts, expected none: transformers reads no {architecture} model "
            "with experts from GGUF; pass its safetensors checkpoint"
        )


def _check_widths(header: Header, architecture: str, config: PreTrainedConfig) -> None:
    """Refuse widths that the family cannot have."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotation = getattr(config, "rope_parameters", None) or {}
    part = rotation.get("partial_rotary_factor", 1.0) if isinstance(rotation, dict) else 1.0
    for key, expected in (("attention.value_length", head), ("rope.dimension_count", int(head * part))):
        got = header.get(f"{architecture}.{key}", expected)
        if got != expected and architecture != "gemma4":  # whose two kinds of layers differ
            raise UnsupportedError(
                f"{header.file}: {architecture}.{key}: got {got}, expected {expected}, the only width that transformers' "
                f"{config.model_type} has for heads of {head}"
            )


def _class_names(config: PreTrainedConfig) -> Iterable[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return () if found is None else (found,) if isinstance(found, str) else found
