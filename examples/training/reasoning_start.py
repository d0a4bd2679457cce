"""Initial weights of the reasoning model: random, except heads of layer 0 that look at the tokens just before.

A lookup takes two layers: the first one tells each token its predecessor, and a later one finds the token whose predecessor
is the current token. Neither helps without the other, so training stalls until chance brings both. With the first in place
from the start, the second develops within a few hundred steps.
"""

import torch
from transformers import Qwen3ForCausalLM

CONSTANT = 0.1  # the value of dimension 0 in every embedding, a direction for these heads to read
SHARPNESS = 2.5  # the weight of the query and key norms in the frequencies used
FREQUENCIES = 6  # the number of frequencies used, the highest ones: the lower ones hardly change from token to token


@torch.no_grad()
def look_back(model: Qwen3ForCausalLM) -> None:
    """Make the query heads of the first key-value head in layer 0 attend 1, 2, ... tokens back."""
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
