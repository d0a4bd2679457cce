"""Writes a model of transformers as a GGUF file, with the names, orders and offsets of llama.cpp's converter.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tests.support.exporters.families import SIZES, WINDOW

# transformers' model types and GGUF's names of them
ARCHITECTURES = {"gemma3_text": "gemma3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "mistral": "llama"}

# The families that transformers reads from GGUF and that can be exported; columns are multiples of 32, a block's numbers.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "num_hidden_layers": 6},
    "gpt2": {},
    "llama": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "rope_theta": 5000.0},
    "mistral": {"sliding_window": None},
    "nemotron": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "starcoder2": {"rope_theta": 50000.0},
}
NORMS_PLUS_ONE = ("gemma2", "gemma3", "nemotron")
IDS = {"padding": 0, "bos": 1, "eos": 2}
KeyMaker = Callable[[PreTrainedConfig], Any]

KEYS: dict[str, KeyMaker] = {
    "block_count": lambda c: c.num_hidden_layers,
    "context_length": lambda c: c.max_position_embeddings,
    "embedding_length": lambda c: c.hidden_size,
    "feed_forward_length": lambda c: _first(c, "intermediate_size", "n_inner") or 4 * c.hidden_size,
    "attention.head_count": lambda c: c.num_attention_heads,
    "attention.head_count_kv": lambda c: getattr(c, "num_key_value_heads", None),
    "attention.key_length": lambda c: getattr(c, "head_dim", None),
    "attention.value_length": lambda c: getattr(c, "head_dim", None),
    "attention.layer_norm_rms_epsilon": lambda c: getattr(c, "rms_norm_eps", None),
    "attention.layer_norm_epsilon": lambda c: _first(c, "norm_epsilon", "norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": lambda c: getattr(c, "sliding_window", None) or None,
    "attn_logit_softcapping": lambda c: getattr(c, "attn_logit_softcapping", None),
    "final_logit_softcapping": lambda c: getattr(c, "final_logit_softcapping", None),
    "rope.freq_base": lambda c: _rotation(c).get("rope_theta"),
    "rope.dimension_count": lambda c: _rotated(c),
    "expert_count": lambda c: getattr(c, "num_experts", None),
    "expert_used_count": lambda c: getattr(c, "num_experts_per_tok", None),
    "expert_feed_forward_length": lambda c: getattr(c, "moe_intermediate_size", None),
    "expert_shared_feed_forward_length": lambda c: getattr(c, "shared_expert_intermediate_size", None),
    "vocab_size": lambda c: c.vocab_size,
}


def make_model(family: str, **changes: Any) -> PreTrainedModel:
    """Return a random model of a family, with biases and norms that matter."""
    apart = {"intermediate_size", "num_key_value_heads"} if family == "gpt2" else set[str]()
    sizes = {name: size for name, size in SIZES.items() if name not in apart}
    norm = {"norm_topk_prob": True} if family == "qwen3_moe" else {}
    config = AutoConfig.for_model(family, **{**sizes, **FAMILIES[family], **norm, **changes})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            else:
                parameter.mul_(4)
    return model.eval()


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    *,
    kinds: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    split: int = 0,
) -> Path:
    """Write `model` to `path`, and return the path.

    kinds: types by a pattern of names in the file, "attn_q": "Q8_0"; any other tensor is F32.
    metadata: more keys, or other values; None leaves a key out.
    tensors: more tensors, or other values.
    split: the number of tensors of a part; 0: one file. The parts' names end as llama.cpp's do.
    """
    config: Any = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = GGUFWriter(path, architecture, split_max_tensors=split)
    made = {f"{architecture}.{key}": make(config) for key, make in KEYS.items()}
    made |= {f"tokenizer.ggml.{name}_token_id": token for name, token in IDS.items()}
    made["general.name"] = "tiny"
    for key, value in {**made, **(metadata or {})}.items():
        if value is not None:
            _add(writer, key, value)
    for name, values in {**to_file_tensors(model, architecture), **(tensors or {})}.items():
        kind = next((GGMLQuantizationType[kind] for part, kind in (kinds or {}).items() if part in name), None)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, _blocks(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FACTORS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the factors of a block are, which are halves."""


def random_blocks(kind: GGMLQuantizationType, count: int) -> np.ndarray:
    """Random blocks [count, bytes] of a type, with small scales."""
    rng = np.random.default_rng(count)
    made = rng.integers(0, 256, (count, GGML_QUANT_SIZES[kind][1])).astype(np.uint8)
    if kind == GGMLQuantizationType.MXFP4:
        made[:, 0] = rng.integers(110, 130, count)
    halves = FACTORS.get(kind.name, (0, 2) if kind.name in ("Q4_1", "Q5_1") else (0,))
    for place in () if kind == GGMLQuantizationType.MXFP4 else halves:
        made[:, place : place + 2] = rng.uniform(0.0001, 0.0005, count).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return made


def _blocks(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The blocks of `values`; random ones of the types that the library does not write."""
    if kind.name not in FACTORS:
        blocks: np.ndarray = quantize(values, kind)
        return blocks
    return random_blocks(kind, values.size // GGML_QUANT_SIZES[kind][0]).reshape(*values.shape[:-1], -1)


def to_file_tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """The tensors as a GGUF file has them, by the names there."""
    config: Any = model.config
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    made: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        values = parameter.detach().float().numpy()
        if tied and name == "lm_head.weight":
            continue
        if experts := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj", name):
            halves = np.split(values, 2, 1) if experts[2] == "gate_up" else [values]
            parts = ("gate", "up") if experts[2] == "gate_up" else ("down",)
            made |= {f"blk.{experts[1]}.ffn_{part}_exps.weight": half for part, half in zip(parts, halves, strict=True)}
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        made[target] = np.ascontiguousarray(_change(target, values, architecture, config))
    return made


def _change(name: str, values: np.ndarray, architecture: str, config: Any) -> np.ndarray:
    """The values of a tensor as the file has them."""
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if architecture in NORMS_PLUS_ONE and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and values.ndim == 2 and re.search(r"\.(attn_qkv|attn_output|ffn_up|ffn_down)\.", name):
        return values.T
    return values[0] if "ffn_gate_inp_shexp" in name else values


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _first(config: Any, *names: str) -> Any:
    return next((getattr(config, name) for name in names if hasattr(config, name)), None)


def _rotation(config: Any) -> dict[str, Any]:
    found = getattr(config, "rope_parameters", None) or {}
    return found.get("full_attention", found)


def _rotated(config: Any) -> int | None:
    if not _rotation(config):
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head * _rotation(config).get("partial_rotary_factor", 1.0))
