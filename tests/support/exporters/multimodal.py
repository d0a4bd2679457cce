"""Tiny random multimodal checkpoints, and the logits of their whole models on text alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedModel

from tests.support.exporters.families import SIZES

CONTEXT = 64
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_CLIP = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **_VISION}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
_AUDIO = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 8,
}
_QWEN2_VISION = {"depth": 1, "num_heads": 2, "patch_size": 14}
_QWEN3_VISION = {
    **_QWEN2_VISION,
    "hidden_size": 16,
    "intermediate_size": 24,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
}

# What each type has beside SIZES in its text part, and its other parts.
TYPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {
            "head_dim": 16,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"vision_config": {"image_size": 28, "patch_size": 14, **_VISION}, "mm_tokens_per_image": 4},
    ),
    "llava": ({"model_type": "llama"}, {"vision_config": _CLIP, "image_token_index": 7, "image_seq_length": 4}),
    "mistral3": (
        {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        {"vision_config": {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 8, **_VISION}},
    ),
    "qwen2_5_vl": (
        {"rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
        {"vision_config": {**_QWEN2_VISION, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 64}},
    ),
    "qwen3_vl": (
        {"head_dim": 16, "rope_parameters": {**_ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True}},
        {"vision_config": _QWEN3_VISION},
    ),
    "qwen3_vl_moe": (
        {
            "head_dim": 16,
            "rope_parameters": {**_ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
            **_EXPERTS,
        },
        {"vision_config": _QWEN3_VISION},
    ),
    "qwen2_5_omni_thinker": (
        {"rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
        {
            "vision_config": {**_QWEN2_VISION, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 64},
            "audio_config": {**_AUDIO, "output_dim": 64},
            "vision_start_token_id": 3,
        },
    ),
    "qwen3_omni_moe_thinker": (
        {
            "head_dim": 16,
            "rope_parameters": {**_ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
            **_EXPERTS,
        },
        {"vision_config": _QWEN3_VISION, "audio_config": {**_AUDIO, "output_dim": 64}, "vision_start_token_id": 3},
    ),
    "qwen2_audio": (
        {"model_type": "qwen2"},
        {"audio_config": _AUDIO},
    ),
}


def make_whole(model_type: str, *, gain: float = 8.0, tied: bool = False, **changes: Any) -> PreTrainedModel:
    """Return a random multimodal model, with eager attention; `gain` scales the matrices of all its parts.

    changes: of the settings of its text part.
    """
    text, parts = TYPES[model_type]
    settings = {**SIZES, **text, "tie_word_embeddings": tied, **changes}
    config = AutoConfig.for_model(model_type, text_config=settings, tie_word_embeddings=tied, **parts)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            else:
                parameter.mul_(gain)
    return model.eval()


def save_whole(model_type: str, path: Path, *, max_shard_size: str = "1GB", **options: Any) -> PreTrainedModel:
    """Write a checkpoint of `make_whole`, and return the model; keywords as there."""
    model = make_whole(model_type, **options)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    (path / "preprocessor_config.json").write_text('{"do_resize": true}')
    return model


def whole_logits(model: PreTrainedModel, tokens: Sequence[int]) -> np.ndarray:
    """The logits [token, vocabulary] of a text alone."""
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.tensor([list(tokens)])).logits[0].numpy()
    return logits


def rename(path: Path, old: str, new: str) -> None:
    """Give the tensors of a checkpoint in one file, whose names start with `old`, names that start with `new`."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    renamed = {new + name.removeprefix(old) if name.startswith(old) else name: each for name, each in tensors.items()}
    save_file(renamed, file, {"format": "pt"})
