"""Model families whose checkpoints hold buffers next to parameters, as tiny checkpoints with buffers that were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.source.tensor_matching import persistent_buffers
from tests.support.exporters.families import SIZES

_ROUTER = {"moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

BUFFERED: dict[str, dict[str, Any]] = {
    "glm4_moe": {**_ROUTER, "n_routed_experts": 6, "head_dim": 16, "first_k_dense_replace": 1},
    "dots1": {**_ROUTER, "n_routed_experts": 6, "head_dim": 16, "first_k_dense_replace": 1},
    "minimax_m2": {
        **_ROPE,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "head_dim": 16,
    },  # another name in the file
    "apertus": {"hidden_act": "xielu", **_ROPE},  # buffers without a dimension
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "sliding_window": 20,
        "num_kv_shared_layers": 0,
    },
}


def make_buffered(family: str) -> PreTrainedModel:
    """Return a random model of the family, whose buffers are not those of its constructor."""
    config = AutoConfig.for_model(family, **{**SIZES, **BUFFERED[family]})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for buffer in persistent_buffers(model).values():
            buffer.add_(0.3 * torch.randn_like(buffer))
    return model.eval()


def save_buffered(family: str, path: Path) -> None:
    """Write a checkpoint of `make_buffered`."""
    make_buffered(family).save_pretrained(path)
