"""Tests of config.json from metadata: what transformers passes over, and metadata that no model goes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.gguf_files import make_model, write_gguf


def opened(path: Path, family: str, metadata: dict[str, Any] | None = None, **changes: Any) -> Checkpoint:
    """The checkpoint of a random model."""
    return open_checkpoint(str(write_gguf(make_model(family, **changes), path / "m.gguf", metadata=metadata)))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": 7.0, "final_logit_softcapping": 5.0, "sliding_window": 11}),
        ("qwen2_moe", {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 32}),
        ("starcoder2", {"norm_epsilon": 1e-3, "rope_theta": 1e6}),
        ("llama", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
        ("phi3", {"sliding_window": 9, "partial_rotary_factor": 0.5}),
        ("nemotron", {"partial_rotary_factor": 0.25, "norm_eps": 1e-3}),
        ("gpt2", {"n_inner": 96, "n_positions": 128}),
        ("qwen3", {"tie_word_embeddings": True, "head_dim": 64}),
    ],
)
def test_settings_that_transformers_passes_over(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(family, **changes)
    file = write_gguf(model, tmp_path / "m.gguf")
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.unused.parts == ()
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(load_reference(str(file), ())(input_ids=tokens).logits, model(input_ids=tokens).logits)


@pytest.mark.parametrize(("layers", "scale"), [(46, 16), (42, 32)])
def test_the_largest_gemmas_scale_attention_by_the_hidden_size(layers: int, scale: int, tmp_path: Path) -> None:
    config = opened(tmp_path, "gemma2", num_hidden_layers=layers, num_attention_heads=4, hidden_size=64).config
    assert config.query_pre_attn_scalar == scale


def test_the_vocabulary_is_the_embeddings_rows_where_nothing_is_said(tmp_path: Path) -> None:
    tokens = [f"t{number}" for number in range(200)]
    assert (
        opened(tmp_path, "qwen2", {"qwen2.vocab_size": None, "tokenizer.ggml.tokens": tokens}).config.vocab_size == 250
    )


def test_as_many_heads_of_keys_where_nothing_is_said(tmp_path: Path) -> None:
    model = make_model("llama", num_key_value_heads=6)
    file = write_gguf(model, tmp_path / "m.gguf", metadata={"llama.attention.head_count_kv": None})
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(open_checkpoint(str(file)).read(name), model.get_parameter(name))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": 3}, r"got tensors of 2 layers, expected 3 \(llama.block_count\)"),
        ({"llama.block_count": None}, "got tensors of 2 layers, expected None"),
        ({"llama.block_count": 1 << 31}, "got tensors of 2 layers"),
        ({"llama.attention.head_count": None}, "got shape|cannot make a config|do not belong together"),
        (
            {"llama.attention.head_count": 32},
            r"'blk.0.attn_q.weight' got shape \[96, 96\], expected one that goes with",
        ),
        ({"llama.embedding_length": "many"}, "transformers cannot make a config of its metadata"),
        (
            {"llama.attention.key_length": 20},
            r"value_length: got 16, expected 20, the only width that transformers' llama has",
        ),
        ({"llama.attention.value_length": 20}, r"value_length: got 20, expected 16"),
        ({"llama.rope.dimension_count": 8}, r"rope.dimension_count: got 8, expected 16"),
        ({"llama.rope.scaling.type": "ntk"}, "got rotations scaled by 'ntk', expected none, linear, yarn or longrope"),
        ({"llama.expert_count": 8}, "got 8 experts, expected none: transformers reads no llama model with experts"),
        ({"general.architecture": "rwkv7"}, "'rwkv7', expected one that transformers reads from GGUF: .*qwen3moe"),
    ],
)
def test_metadata_that_no_model_goes_with(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ExportError, UnsupportedError), match=message):
        checkpoint = opened(tmp_path, "llama", metadata)
        bind_parameters(checkpoint, build_skeleton(checkpoint.config, attention="eager", max_context=16).model)


@pytest.mark.parametrize("key", ["embedding_length", "feed_forward_length", "vocab_size"])
def test_a_shape_that_disagrees_with_the_metadata_is_named(key: str, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "qwen2", {f"qwen2.{key}": 128, "qwen2.rope.dimension_count": None})
    model = build_skeleton(checkpoint.config, attention="eager", max_context=16).model
    with pytest.raises(
        ExportError, match=r"parameter 'model\..*' got shape \[.*\] from the checkpoint, expected \[.*128"
    ):
        bind_parameters(checkpoint, model)
