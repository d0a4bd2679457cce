"""Tests that tensors which a model has no use for are named, except those that transformers declares as left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.safetensors import WEIGHTS
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import load_skeleton
from enginewright.runtime.errors import ExportError
from tests.support.exporters.buffered import save_buffered
from tests.support.exporters.checkpoints import add_tensors, assert_same, bind, edit_tensors, shards


def unused_names(model: Path) -> dict[str, tuple[str, ...]]:
    """What an export does not use, by file."""
    opened = open_checkpoint(str(model))
    bind_parameters(opened, load_skeleton(opened, attention="eager", max_context=64).model)
    return {parts.file: parts.names for parts in opened.unused.parts}


def test_extra_tensors_are_named_once(model: Path) -> None:
    expected = bind(model)
    extra = {"model.layers.2.eh_proj.weight": torch.ones(8), "visual.patch": torch.ones(1, dtype=torch.int8)}
    edit_tensors(model, lambda tensors: tensors.update(extra))
    assert_same(bind(model), expected)
    assert unused_names(model) == {WEIGHTS: tuple(extra)}


def test_extra_tensors_are_named_by_shard(sharded: Path) -> None:
    first, second = shards(sharded)[:2]
    add_tensors(first, head=torch.ones(1))
    add_tensors(second, tail=torch.ones(1))
    assert unused_names(sharded) == {first.name: ("head",), second.name: ("tail",)}


def test_strict_refuses_extra_tensors(model: Path, tmp_path: Path) -> None:
    edit_tensors(model, lambda tensors: tensors.update({"head.weight": torch.ones(8)}))
    with pytest.raises(
        ExportError, match=r"strict: .*\nmodel.safetensors: head.weight: not used: no parameter or buffer"
    ):
        build(str(model), tmp_path / "engine", Recipe(), "onnxruntime", strict=True)


def test_tensors_that_transformers_leaves_out_are_not_named(model: Path) -> None:
    """Buffers that older versions stored, and a tied matrix that is stored twice."""
    extra = {"model.rotary_emb.inv_freq": torch.ones(8), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    edit_tensors(model, lambda t: t.update({**extra, "lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert unused_names(model) == {}


def test_layers_that_transformers_declares_are_not_named(tmp_path: Path) -> None:
    """The layer for predicting further tokens of glm4_moe."""
    save_buffered("glm4_moe", tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({"model.layers.92.eh_proj.weight": torch.ones(1)}))
    assert unused_names(tmp_path) == {}
    edit_tensors(tmp_path, lambda t: t.update({"model.layers.2.eh_proj.weight": torch.ones(1)}))
    assert unused_names(tmp_path) == {WEIGHTS: ("model.layers.2.eh_proj.weight",)}


def test_a_second_tensor_of_one_parameter_is_named(model: Path) -> None:
    """As in transformers, the first one counts."""
    edit_tensors(model, lambda t: t.update({"norm.weight": t["model.norm.weight"] + 1}))
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).get_parameter("model.norm.weight")
    assert torch.equal(bind(model)["model.norm.weight"], expected)
    assert unused_names(model) == {WEIGHTS: ("norm.weight",)}


def test_other_files_of_tensors_are_named(model: Path) -> None:
    for name in ("consolidated.safetensors", "model-00001-of-00002.safetensors"):
        save_file({"x": torch.zeros(1)}, model / name)
    names = unused_names(model)
    assert names == {
        name: ("every tensor",) for name in ("consolidated.safetensors", "model-00001-of-00002.safetensors")
    }
