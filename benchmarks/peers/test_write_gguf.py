"""Tests of the names, rows and metadata in the GGUF files for the comparison with llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoConfig

from benchmarks.peers.write_gguf import gguf_name, gguf_rows, read_architecture
from enginewright.exporters.source.skeleton import build_skeleton

SIZES = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_parameter_has_a_name_of_its_own(family: str) -> None:
    config = AutoConfig.for_model(family, **SIZES)
    names = [name for name, _ in build_skeleton(config, attention="eager", max_context=1).model.named_parameters()]
    stored = {gguf_name(name) for name in names}
    assert len(stored) == len(names)
    assert {"token_embd.weight", "output.weight", "output_norm.weight", "blk.1.ffn_down.weight"} <= stored


def test_heads_of_a_llama_turn_the_same_pairs() -> None:
    architecture = read_architecture(AutoConfig.for_model("llama", **SIZES).to_dict())
    rows = np.arange(24.0)[:, None] * np.ones(5)  # three heads of 8, of which (0, 4) (1, 5) (2, 6) (3, 7) turn together
    stored = gguf_rows(rows, "blk.0.attn_q.weight", architecture)
    assert stored[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert stored[8:16, 0].tolist() == [8, 12, 9, 13, 10, 14, 11, 15]
    assert gguf_rows(rows[:8], "blk.0.attn_k.weight", architecture)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert gguf_rows(rows[:, 0], "blk.0.attn_q.bias", architecture)[:4].tolist() == [0, 4, 1, 5]
    assert gguf_rows(rows, "blk.0.attn_v.weight", architecture) is rows


def test_heads_of_a_qwen_stay_in_halves() -> None:
    architecture = read_architecture(AutoConfig.for_model("qwen2", **SIZES).to_dict())
    rows = np.arange(24.0)[:, None]
    assert gguf_rows(rows, "blk.0.attn_q.weight", architecture) is rows


def test_metadata_says_what_the_config_does() -> None:
    config = AutoConfig.for_model("qwen3", **SIZES, head_dim=16, rope_theta=5e5, rms_norm_eps=1e-6)
    architecture = read_architecture(config.to_dict())
    assert architecture.integers["attention.key_length"] == 16
    assert architecture.integers["attention.head_count_kv"] == 1
    assert architecture.floats == {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 5e5}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "gemma3_text"}, "expected one of llama"), ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn'")],
)
def test_what_it_cannot_write_is_refused(change: dict[str, object], message: str) -> None:
    config = AutoConfig.for_model("qwen2", **SIZES).to_dict() | change
    with pytest.raises(SystemExit, match=message):
        read_architecture(config)
