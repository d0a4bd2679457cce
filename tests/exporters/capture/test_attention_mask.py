"""Tests of masks that are read instead of made: windows count wherever a model tells them, and other masks are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from transformers import LlamaConfig, PreTrainedConfig, masking_utils

from benchmarks.families.small_configs import small_config
from enginewright.exporters.capture.attention_hook import ATTENTION, Trace, attend, tracing
from enginewright.exporters.capture.attention_mask import AttentionMask
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.capture.capture import capture
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.errors import UnsupportedError


def make(kind: str, *, window: int | None = None, chunk: int | None = None, **options: Any) -> AttentionMask:
    """The mask that transformers' function of that name gets for a model whose attention is ours."""
    config = LlamaConfig(sliding_window=window, attention_chunk_size=chunk)
    config._attn_implementation = ATTENTION
    mask = getattr(masking_utils, kind)(config, torch.zeros(1, 7, 8), None, past_key_values=None, **options)
    assert isinstance(mask, AttentionMask)
    return mask


def test_a_causal_mask_is_all_earlier_tokens() -> None:
    assert make("create_causal_mask") == AttentionMask(family="llama")


@pytest.mark.parametrize("window", [1, 2, 20, 4096])
def test_a_sliding_window_has_its_size(window: int) -> None:
    assert make("create_sliding_window_causal_mask", window=window) == AttentionMask(family="llama", window=window)


def test_a_bidirectional_mask_sees_later_tokens() -> None:
    assert make("create_bidirectional_mask").sees_later


def first_tokens(batch: Any, head: Any, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
    return kv < 2


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "chunks": ("create_chunked_causal_mask", {"chunk": 20}, "a mask of chunks, blocks or prefixes"),
    "a prefix that all see": ("create_causal_mask", {"or_mask_function": first_tokens}, "a mask of chunks, blocks"),
    "tokens left out": ("create_causal_mask", {"and_mask_function": first_tokens}, "a mask of chunks, blocks"),
    "a window in which a prefix stays": (
        "create_sliding_window_causal_mask",
        {"window": 20, "or_mask_function": first_tokens},
        "a mask of chunks, blocks or prefixes",
    ),
    "a window to both sides": ("create_bidirectional_sliding_window_mask", {"window": 20}, "a mask of chunks, blocks"),
    "blocks by the input": (
        "create_causal_mask",
        {"block_sequence_ids": torch.tensor([[-1, 0, 0, 0, -1, 1, 1]])},
        "a mask of chunks, blocks or prefixes",
    ),
}


def call(mask: object, **options: Any) -> Trace:
    """One call of attention with the mask, while the sizes of layers are learned."""
    module, states = torch.nn.Module(), torch.zeros(1, 2, 7, 16)
    module.layer_idx = 0
    trace = Trace(LlamaConfig(), PagedCacheFormat(16))
    with tracing(trace):
        attend(module, states, states, states, mask, **options)  # type: ignore[arg-type]
    return trace


@pytest.mark.parametrize("case", REFUSED)
def test_other_masks_are_refused_by_the_layer_that_uses_them(case: str) -> None:
    kind, options, message = REFUSED[case]
    mask = make(kind, **options)
    with pytest.raises(UnsupportedError, match=f"llama: layer 0 attends with {message}.*; expected a causal mask or a"):
        call(mask)


def test_masks_that_transformers_did_not_make_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="layer 0 attends with a mask that its own code makes"):
        call(torch.zeros(1, 1, 7, 7))
    with pytest.raises(UnsupportedError, match="layer 0 attends with no mask"):
        call(None)


def test_a_mask_by_the_input_is_refused_while_a_model_is_traced() -> None:
    with FakeTensorMode():
        mask = make("create_causal_mask", block_sequence_ids=torch.zeros(1, 7, dtype=torch.int64))
    with pytest.raises(UnsupportedError, match="layer 0 attends with a mask that depends on more than positions"):
        call(mask)


@pytest.mark.parametrize("use", [lambda m: m + torch.zeros(2), lambda m: torch.zeros(2) * m, lambda m: torch.neg(m)])
def test_a_model_that_computes_with_its_mask_is_refused(use: Any) -> None:
    with pytest.raises(UnsupportedError, match="llama: its own code changes the attention mask"):
        use(make("create_causal_mask"))


def test_the_window_is_the_masks() -> None:
    mask = AttentionMask(family="llama", window=20)
    assert call(mask).layers[0].window == call(mask, sliding_window=20).layers[0].window == 20
    with pytest.raises(UnsupportedError, match="layer 0 has a window of 21 tokens and a mask of 20 tokens"):
        call(mask, sliding_window=21)
    with pytest.raises(UnsupportedError, match="layer 0 has a window of 20 tokens and a mask of all tokens"):
        call(AttentionMask(family="llama"), sliding_window=20)


@pytest.mark.parametrize("name", ["position_bias", "head_mask", "alibi", "is_causal"])
def test_keywords_that_may_change_attention_are_refused(name: str) -> None:
    mask = AttentionMask(family="llama")
    call(mask, dropout=0.0, output_attentions=False, use_cache=None, position_ids=torch.arange(7))
    with pytest.raises(UnsupportedError, match=f"llama: layer 0 passes {name} to its attention"):
        call(mask, **{name: False if name == "is_causal" else torch.zeros(1)})


def refusal(config: PreTrainedConfig) -> str:
    with pytest.raises(UnsupportedError) as refused:
        capture(build_skeleton(config, attention=ATTENTION, max_context=64), PagedCacheFormat(16))
    return str(refused.value)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("doge", "its own code reads .dtype of the attention mask"),
        ("diffllama", "layer 0 attends twice in one pass"),
        ("jetmoe", "jetmoe: its steps depend on the numbers in a tensor"),
        ("dbrx", "dbrx: its steps depend on the numbers in a tensor"),
    ],
)
def test_models_whose_attention_no_graph_expresses_are_refused(model_type: str, message: str) -> None:
    assert message in refusal(small_config(model_type))


@pytest.mark.parametrize("model_type", ["camembert", "xlm-roberta"])
def test_positions_that_depend_on_token_ids_are_refused(model_type: str) -> None:
    skeleton = build_skeleton(small_config(model_type), attention=ATTENTION, max_context=64)
    with pytest.raises(UnsupportedError, match=rf"{model_type}: .*embeddings derives positions from token ids"):
        capture(skeleton, PagedCacheFormat(32))


@pytest.mark.slow
def test_an_operator_that_the_graph_cannot_have_is_named() -> None:
    skeleton = build_skeleton(small_config("gemma3n_text"), attention=ATTENTION, max_context=64)
    with pytest.raises(UnsupportedError, match=r"gemma3n_text: .*captured as a graph \(.*prims\.erf_inv"):
        capture(skeleton, PagedCacheFormat(32))
