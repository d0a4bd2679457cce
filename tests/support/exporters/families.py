"""The model families every pipeline test covers, as tiny random checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "vocab_size": 250,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 20  # shorter than every longer test prompt

# What makes each family worth its place, beside the sizes above.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3},  # head size 10, odd head count
    "qwen2": {"tie_word_embeddings": True},  # biases, tied output projection
    "qwen3": {"head_dim": 32},  # norms of queries and keys
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"head_dim": 16, "sliding_window": WINDOW},  # softcap, alternating windows
    "gemma3_text": {  # two rotary bases, those of layers with a window and of those without
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {},  # packed projections in the checkpoint
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},  # experts stored one by one
    "helium": {
        "head_dim": 16,
        "hidden_act": "silu",
    },  # interleaved rotary; an epsilon of 1e-8 and a padding row of zeros
    "gpt_oss": {  # sinks, windows, experts with biases
        "head_dim": 16,
        "sliding_window": WINDOW,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


def make_model(family: str, *, gain: float = 1.0, **changes: Any) -> PreTrainedModel:
    """Return a random model of the family; `gain` scales its matrices, so that logits spread as a trained model's."""
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)  # biases and norms that matter
            else:
                parameter.mul_(gain)
    return model.eval()


def save_checkpoint(family: str, path: Path, **options: Any) -> None:
    """Write a checkpoint of `make_model`; keywords as there, and max_shard_size."""
    shard = options.pop("max_shard_size", "1GB")
    make_model(family, **options).save_pretrained(path, max_shard_size=shard)
