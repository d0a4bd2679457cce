"""torch's ways to do the same work as the kernels; the benchmark compares with the fastest one that runs.

Attention's baselines read contiguous caches [batch, heads, tokens, head_dim] without tables. All baselines of a family return
the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention

from benchmarks.kernels.gpu.calls import (
    AttentionShape,
    HeadsShape,
    LinearShape,
    MixShape,
    SplitShape,
    halves,
    head_weights,
    logits,
    mix_inputs,
    split_inputs,
)

Baseline = Callable[..., Any]
Inputs = Callable[[str], list[Tensor]]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Several ways to do the same work; created by the functions of this module.

    inputs: makes the arguments that every baseline takes, on a device.
    baselines: name -> function.
    """

    inputs: Inputs
    baselines: dict[str, Baseline]


def attention(shape: AttentionShape, *, compiled: bool) -> Family:
    """Attention of `shape.new` tokens over all tokens; a single new token needs no mask.

    compiled: include the baselines that torch.compile makes.
    """

    def inputs(device: str) -> list[Tensor]:
        key, value = (halves(device, shape.batch, shape.kv_heads, shape.total, shape.dim) for _ in range(2))
        return [halves(device, shape.batch, shape.query_heads, shape.new, shape.dim), key, value]

    baselines = dict(_sdpa(shape))
    if compiled:
        baselines |= dict(_flex(shape))
    baselines |= dict(_flash_attn())
    return Family(inputs=inputs, baselines=baselines)


def _sdpa(shape: AttentionShape) -> Iterator[tuple[str, Baseline]]:
    """Each backend of SDPA, on grouped heads as they are, and a second way.

    The second way treats a group's heads as tokens if there is one new token; otherwise it repeats the key and value heads.
    """
    group = shape.query_heads // shape.kv_heads
    for name, backend in BACKENDS.items():
        yield f"sdpa {name}", _with(backend, _grouped(shape))
        if shape.new == 1:
            yield f"sdpa {name}, group as tokens", _with(backend, _group_as_tokens(shape))
        else:
            yield f"sdpa {name}, heads repeated", _with(backend, _repeated_heads(shape, group))


def _with(backend: SDPBackend, baseline: Baseline) -> Baseline:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            result: Tensor = baseline(query, key, value)
            return result

    return run


def _mask(shape: AttentionShape) -> dict[str, Any]:
    """The arguments that make SDPA causal, where the new tokens are the last ones."""
    if shape.new == 1:
        return {}
    if shape.held == 0:
        return {"is_causal": True}
    from torch.nn.attention.bias import causal_lower_right

    return {"attn_mask": causal_lower_right(shape.new, shape.total)}


def _grouped(shape: AttentionShape) -> Baseline:
    mask = _mask(shape)
    return lambda query, key, value: scaled_dot_product_attention(query, key, value, enable_gqa=True, **mask)


def _group_as_tokens(shape: AttentionShape) -> Baseline:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query.view(shape.batch, shape.kv_heads, -1, shape.dim), key, value)

    return run


def _repeated_heads(shape: AttentionShape, group: int) -> Baseline:
    """Attention on repeated heads; the copies are made at each call, because a cache would not hold them."""
    mask = _mask(shape)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
        return scaled_dot_product_attention(query, key, value, **mask)

    return run


def _flex(shape: AttentionShape) -> Iterator[tuple[str, Baseline]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled: Any = torch.compile(flex_attention)
    blocks: list[Any] = []

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query + shape.held >= key

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if shape.new > 1 and not blocks:
            blocks.append(create_block_mask(seen, None, None, shape.new, shape.total, device=query.device.type))
        result: Tensor = compiled(query, key, value, block_mask=blocks[0] if blocks else None, enable_gqa=True)
        return result

    yield "FlexAttention", run


def _flash_attn() -> Iterator[tuple[str, Baseline]]:
    """The package flash-attn, if it is installed; it reads caches as [batch, tokens, heads, head_dim], through views."""
    try:
        from flash_attn import flash_attn_func, flash_attn_with_kvcache  # type: ignore[import-not-found]
    except ImportError:
        return

    def by_token(*tensors: Tensor) -> list[Tensor]:
        return [tensor.transpose(1, 2) for tensor in tensors]

    yield "flash_attn", lambda *qkv: flash_attn_func(*by_token(*qkv), causal=True).transpose(1, 2)
    yield "flash_attn with cache", lambda *qkv: flash_attn_with_kvcache(*by_token(*qkv), causal=True).transpose(1, 2)


def depth_mix(shape: MixShape, *, compiled: bool) -> Family:
    """The formula of DepthMix in torch."""

    def run(query: Tensor, key: Tensor, value: Tensor, *sources: Tensor) -> Tensor:
        mean = query.view(shape.tokens, shape.kv_heads, -1, shape.dim).float().mean(2)
        keys = torch.stack([*sources[0::2], key], 2).float()
        logits = (mean.unsqueeze(2) * keys).sum(3) * shape.dim**-0.5
        values = torch.stack([*sources[1::2], value], 2).float()
        mixed: Tensor = (logits.softmax(2).unsqueeze(3) * values).sum(2)
        return mixed.half()

    baselines: dict[str, Baseline] = {"torch": run}
    if compiled:
        baselines["torch.compile"] = torch.compile(run)
    return Family(inputs=lambda device: mix_inputs(device, shape), baselines=baselines)


def clp_emit(shape: HeadsShape, *, compiled: bool) -> Family:
    """The hidden layers, logits and best tokens of `length` heads, without a classifier."""

    def inputs(device: str) -> list[Tensor]:
        used = [tensor[: shape.length].contiguous() for tensor in head_weights(device, shape)]
        return [halves(device, shape.rows, shape.hidden), *used]

    def run(hidden: Tensor, up: Tensor, up_bias: Tensor, out: Tensor, out_bias: Tensor) -> Tensor:
        states = hidden.expand(shape.length, -1, -1)
        inner = gelu(torch.baddbmm(up_bias.unsqueeze(1), states, up.transpose(1, 2)))
        return torch.baddbmm(out_bias.unsqueeze(1), inner, out.transpose(1, 2)).argmax(2)

    baselines: dict[str, Baseline] = {"torch": run}
    if compiled:
        baselines["torch.compile"] = torch.compile(run)
    return Family(inputs=inputs, baselines=baselines)


def linear(shape: LinearShape) -> Family:
    """The matrix product with weights in halves."""
    return Family(
        inputs=lambda device: [halves(device, shape.rows, shape.size), halves(device, shape.outputs, shape.size)],
        baselines={"torch.matmul of halves": lambda x, weight: x @ weight.T},
    )


def split_qkv(shape: SplitShape, *, compiled: bool) -> Family:
    """Splitting, norms and rotations in torch."""

    def run(packed: Tensor, cos: Tensor, sin: Tensor, query_norm: Tensor, key_norm: Tensor) -> tuple[Tensor, ...]:
        heads = packed.view(shape.tokens, -1, shape.dim)
        query, key, value = heads.tensor_split([shape.query_heads, shape.query_heads + shape.kv_heads], 1)
        turned = []
        for x, norm in ((query, query_norm), (key, key_norm)):
            left, right = rms_norm(x, (shape.dim,), norm, 1e-6).chunk(2, 2)
            c, s = cos.unsqueeze(1), sin.unsqueeze(1)
            turned.append(torch.cat([left * c - right * s, right * c + left * s], 2))
        return turned[0], turned[1], value.contiguous()

    baselines: dict[str, Baseline] = {"torch": run}
    if compiled:
        baselines["torch.compile"] = torch.compile(run)
    return Family(inputs=lambda device: split_inputs(device, shape), baselines=baselines)


def greedy_sample(rows: int, vocab: int) -> Family:
    """The index of the largest logit of each row."""
    return Family(
        inputs=lambda device: [logits(device, rows, vocab)], baselines={"torch.argmax": lambda x: x.argmax(1)}
    )
