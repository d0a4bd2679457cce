"""Small configs of every model type: few layers that still show each kind of layer, odd sizes, a window below the context."""

from __future__ import annotations

import functools
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from enginewright.exporters.source.multimodal.text_config import find_class, is_multimodal
from enginewright.runtime.errors import UnsupportedError

LAYERS = 3
WINDOW = 133
"""Tokens: longer than a tile of 128, so that KVarN encodes within a window, and no multiple of anything."""
CONTEXT = 512

# By the names that transformers uses most; a config that has another name for one of them maps it (`attribute_map`).
SIZES: dict[str, Any] = {
    "vocab_size": 250,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,  # not hidden_size / num_attention_heads
    "max_position_embeddings": CONTEXT,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # mixtures of experts
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
    "moe_shared_expert_intermediate_size": 96,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

NEEDED: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}
"""Settings without which a config of defaults is refused by its own class."""

# Other values of these sizes, or sizes beyond them, by model type.
_SMALL_GEMMA4 = {
    "global_head_dim": 64,  # layers of two head sizes and two numbers of KV heads
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 250,
}
_SCALED = {"attention_multiplier": 0.25}  # the default of 1 leaves scores so wide that rounding shows
OVERRIDES: dict[str, dict[str, Any]] = {
    "afmoe": {"num_dense_layers": 1},
    "cohere": {"logit_scale": 1.0},  # the default makes all logits nearly 0
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {  # its default has no frequencies
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "logit_scale": 1.0,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 96, "ffn_hidden_size": 64, "moe_num_experts": 6, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "gemma3n_text": {  # two layers that read the keys and values of earlier ones; widths of its side paths
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "intermediate_size": [160, 160, 160, 160],
        "activation_sparsity_pattern": [0.9, 0.0, 0.9, 0.0],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 250,
        "laurel_rank": 8,
    },
    "gemma4_text": _SMALL_GEMMA4,
    "gemma4_unified_text": _SMALL_GEMMA4,
    "granite": _SCALED,
    "granite_swa": _SCALED,
    "granitemoe": _SCALED,
    "granitemoe_swa": _SCALED,
    "granitemoeshared": _SCALED,
    "helium": {"head_dim": 16},  # its output projection is square
    "lfm2": {"layer_types": ["full_attention"] * LAYERS},  # its convolutions keep a state and are refused
    "lfm2_moe": {"layer_types": ["full_attention"] * LAYERS, "num_dense_layers": 1},
    "mimo_v2_flash": {"num_key_value_heads": 1},  # layers with windows have twice as many
    "minimax_m3_vl_text": {"dense_intermediate_size": 160, "shared_intermediate_size": 64, "rotary_dim": 16},
    "modernbert-decoder": {"local_attention": WINDOW},
    "qwen2": {"use_sliding_window": True},
    "qwen2_moe": {"use_sliding_window": True},
    "qwen3": {"use_sliding_window": True},
    "qwen3_moe": {"use_sliding_window": True},
    "xmod": {"default_language": "en_XX"},
}


@functools.cache
def model_types() -> tuple[str, ...]:
    """The model types of which transformers has a causal language model, without multimodal ones, in order."""
    found = sorted(name for name, config in CONFIG_MAPPING.items() if config in MODEL_FOR_CAUSAL_LM_MAPPING)
    return tuple(name for name in found if not is_whole(published_config(name)))


def is_whole(config: PreTrainedConfig) -> bool:
    """Whether the config is that of a model of several parts, one of them for text, and none an encoder of it."""
    try:
        return is_multimodal(config)
    except ValueError:  # it has two texts, as models with an encoder have
        return False


def published_config(model_type: str) -> PreTrainedConfig:
    """The config that transformers makes of nothing but the type, as far as it can, else with what NEEDED adds."""
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **NEEDED.get(model_type, {}))
    return config


@functools.cache
def whole_types() -> tuple[str, ...]:
    """The multimodal types of which transformers has a class that generates text without an encoder for it, in order."""
    found = []
    for name in sorted(CONFIG_MAPPING):
        try:
            config = published_config(name)
            if is_whole(config) and not getattr(config, "is_encoder_decoder", False):
                find_class(config)
                found.append(name)
        except (ValueError, UnsupportedError):  # its class makes no config of defaults, or generates no text
            continue
    return tuple(found)


def small_config(model_type: str) -> PreTrainedConfig:
    """Return a config of the type in a few layers, with the pattern that its own layers have."""
    sizes = text_sizes(published_config(model_type), OVERRIDES.get(model_type, {}))
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **sizes)
    return config


def text_sizes(published: PreTrainedConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a small model of the kind of `published`; `overrides` go before them."""
    stored = published.to_dict()
    names = type(published).attribute_map
    sizes: dict[str, Any] = {}
    for name, value in SIZES.items():
        if (own := names.get(name, name)) in stored:
            sizes[own] = value
    if stored.get("is_decoder", getattr(published, "is_decoder", True)) is False:
        sizes["is_decoder"] = True  # of an encoder that can be one
    sizes.update(_short_patterns(stored))
    return {**sizes, **overrides}


def _short_patterns(stored: dict[str, Any]) -> dict[str, Any]:
    """Lists with an entry for each layer, as lists of LAYERS that still have every kind of entry."""
    found: dict[str, Any] = {}
    for name, value in stored.items():
        if name in ("layer_types", "mlp_layer_types") and value:
            kinds = list(dict.fromkeys(value))
            if kinds == ["full_attention"] and "sliding_window" in stored:
                kinds = ["full_attention", "sliding_attention"]
            found[name] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    if "num_attention_heads_per_layer" in stored:
        found["num_attention_heads_per_layer"] = [SIZES["num_attention_heads"]] * LAYERS
    return found
