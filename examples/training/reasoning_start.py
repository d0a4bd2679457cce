"""The reasoning model's first weights: random, but for heads of layer 0 that look at the tokens just before.

A lookup takes two layers: one tells each token which token came before it, a later one finds the token whose
predecessor is the one at hand. Neither helps without the other, so training stalls until chance brings both. With
the first in place from the start, the second comes within a few hundred steps.
"""

import torch
from transformers import Qwen3ForCausalLM

CONSTANT = 0.1  # what dimension 0 of every embedding holds: a direction for those heads to read
SHARPNESS = 2.5  # of the query and the key norm in the frequencies used
FREQUENCIES = 6  # of the rotary embedding, the highest ones: the lower ones hardly change from token to token


@torch.no_grad()
def look_back(model: Qwen3ForCausalLM) -> None:
    """Set the query heads of the first key-value head of layer 0 to attend 1, 2, ... tokens back."""
    config, attention = model.config, model.model.layers[0].self_attn
    size, heads = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    base = config.rope_parameters["rope_theta"]
    angles = base ** (-torch.arange(FREQUENCIES) * 2 / size)
    used = torch.cat([torch.arange(FREQUENCIES), torch.arange(FREQUENCIES) + size // 2])
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[used] = SHARPNESS
    attention.k_proj.weight[:size] = 0
    attention.k_proj.weight[:FREQUENCIES, 0] = 1
    attention.q_proj.weight[: heads * size] = 0
    for head in range(heads):
        query = attention.q_proj.weight[head * size : (head + 1) * size, 0]
        query[:FREQUENCIES] = torch.cos(angles * (head + 1))
        query[size // 2 : size // 2 + FREQUENCIES] = -torch.sin(angles * (head + 1))
