"""A small Llama whose weights are sines, so that another program can write the same down; and exact float64 for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT, KEYS, TARGET = (1, 4, 2, 7, 3, 5, 9), (1, 2, 4), 6
PROMPTS = (PROMPT, (1, 4, 2, 8, 3, 5, 9), (1, 4, 2, 10, 9))
ZERO_SHOT = (1, 11, 5, 9)


class _InFloat64(TorchFunctionMode):
    """Computes in float64 what transformers computes in float32 whatever the model's type: norms, softmax, rotary angles."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        changed = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*(torch.float64 if each is torch.float32 else each for each in args), **changed)


@contextmanager
def in_float64(model: LlamaForCausalLM) -> Iterator[None]:
    """Let the model compute in float64 throughout."""
    exact = 10_000.0 ** (-torch.arange(0, 4, 2, dtype=torch.float64) / 4)
    rotary = model.model.rotary_emb
    rotary.inv_freq = exact
    with _InFloat64():
        yield


def sine_llama() -> LlamaForCausalLM:
    """Return the model: 2 layers, 4 heads of 4 numbers over 2 KV heads, d = 12, 20 in the feed-forward part, 13 tokens.

    The n-th parameter, from 1 in the order of the model, is .6 sin(.37 n + i (.71 + .13 n) + j (1.13 - .07 n) + .05 i j), and
    1 + .1 cos(i + n) where it is a norm's; i and j count from 1.
    """
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=13, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, pad_token_id=None,
        bos_token_id=None, eos_token_id=None, max_position_embeddings=64, tie_word_embeddings=False, attn_implementation="eager",
    )).double().eval()  # fmt: skip
    parts = [model.model.embed_tokens]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        parts += [layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        parts += [layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    for n, part in enumerate([*parts, model.model.norm, model.lm_head], 1):
        weight = part.weight
        i = torch.arange(1, weight.shape[0] + 1, dtype=torch.float64)
        if weight.ndim == 1:
            weight.data.copy_(1 + 0.1 * torch.cos(i + n))
            continue
        i, j = i[:, None], torch.arange(1, weight.shape[1] + 1, dtype=torch.float64)
        weight.data.copy_(0.6 * torch.sin(0.37 * n + i * (0.71 + 0.13 * n) + j * (1.13 - 0.07 * n) + 0.05 * i * j))
    return model
