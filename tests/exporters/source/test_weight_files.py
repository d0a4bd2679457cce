"""Tests of the files that a checkpoint's tensors are read from: transformers' order, indexes, and files left over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.safetensors import INDEX, WEIGHTS
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.registry import find_source
from enginewright.runtime.errors import ExportError
from tests.support.exporters.checkpoints import (
    add_tensors,
    assert_same,
    bind,
    edit_config,
    edit_index,
    shards,
    truncate,
)
from tests.support.exporters.families import make_model

SHARDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no shard at all": (
        lambda m: [path.unlink() for path in shards(m)],
        r"model-00001-of-.*: not found; the checkpoint is incomplete",
    ),
    "a tensor in two shards": (
        lambda m: add_tensors(shards(m)[1], **{k: v for k, v in load_file(shards(m)[0]).items()}),
        r"model-00002-of-.*: tensor '\S+' is in model-00001-of-\S+, too; keep one of them",
    ),
    "a cut shard": (lambda m: truncate(shards(m)[1], 200), r"model-00002-of-.*: not a whole safetensors file"),
    "an index without a map": (lambda m: (m / INDEX).write_text("{}"), r"index.json: got no weight_map"),
    "an index that maps to no names": (
        lambda m: (m / INDEX).write_text('{"weight_map": {"a": ["x"]}}'),
        r"index.json: got no weight_map",
    ),
    "a broken index": (lambda m: truncate(m / INDEX, 20), r"index.json: not valid JSON"),
}


@pytest.mark.parametrize("case", SHARDED)
def test_damage_of_shards_is_named(case: str, sharded: Path) -> None:
    damage, message = SHARDED[case]
    damage(sharded)
    with pytest.raises(ExportError, match=message):
        open_checkpoint(str(sharded))


def remove_tensor(model: Path, name: str) -> None:
    """Take a tensor out of the shard that the index names for it."""
    path = model / json.loads((model / INDEX).read_text())["weight_map"][name]
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})


NEEDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard": (
        lambda m: shards(m)[1].unlink(),
        r"model-00002-of-\S+: tensor '(\S+)' of parameter '\1' is missing, and so is the file; download it again",
    ),
    "a tensor": (
        lambda m: remove_tensor(m, "model.norm.weight"),
        r"model-\S+: tensor 'model.norm.weight' of parameter 'model.norm.weight' is missing in it; download it again",
    ),
}


@pytest.mark.parametrize("case", NEEDED)
def test_what_a_parameter_needs_must_be_there(case: str, sharded: Path) -> None:
    damage, message = NEEDED[case]
    damage(sharded)
    with pytest.raises(ExportError, match=message):
        bind(sharded)


def test_one_of_many_experts_must_be_there(tmp_path: Path) -> None:
    make_model("mixtral").save_pretrained(tmp_path / "model", max_shard_size="60KB")
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    remove_tensor(tmp_path / "model", name)
    with pytest.raises(
        ExportError, match=rf"tensor '{name}' of parameter 'model.layers.1.mlp.experts.gate_up_proj' is"
    ):
        bind(tmp_path / "model")


def test_what_no_parameter_needs_may_be_missing(sharded: Path) -> None:
    expected = bind(sharded)
    lost = {"model.layers.2.norm.weight": "model-00009-of-00009.safetensors", "lm_head.weight": shards(sharded)[0].name}
    edit_index(sharded, lambda listed: listed.update(lost))
    assert_same(bind(sharded), expected)
    reference = load_reference(str(sharded), ())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in reference.named_parameters())


def test_an_index_needs_no_metadata(sharded: Path) -> None:
    """The library refuses it, so the reference is filled in another way."""
    expected = bind(sharded)
    listed = json.loads((sharded / INDEX).read_text())["weight_map"]
    (sharded / INDEX).write_text(json.dumps({"weight_map": listed}))
    reference = load_reference(str(sharded), ())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in reference.named_parameters())


def test_a_tensor_may_lie_in_another_shard_than_the_index_says(sharded: Path) -> None:
    expected = bind(sharded)
    edit_index(sharded, lambda listed: listed.update({"model.norm.weight": shards(sharded)[0].name}))
    assert_same(bind(sharded), expected)


@pytest.mark.parametrize("index", [False, True], ids=["a file", "an index"])
def test_config_may_name_the_weights(index: bool, model: Path, sharded: Path) -> None:
    """`transformers_weights` goes before all other files, as in transformers."""
    place = sharded if index else model
    own, named = (INDEX, "own.safetensors.index.json") if index else (WEIGHTS, "own.safetensors")
    (place / own).rename(place / named)
    edit_config(place, transformers_weights=named)
    expected = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    assert find_source(place).name == "safetensors"
    save_file({"other": torch.zeros(1)}, place / WEIGHTS, {"format": "pt"})
    got = bind(place)
    assert all(torch.equal(got[name], parameter) for name, parameter in expected.named_parameters())


@pytest.mark.parametrize("named", ["../own.safetensors", "pytorch_model.bin", "", 3])
def test_config_names_no_weights_elsewhere(named: object, model: Path) -> None:
    edit_config(model, transformers_weights=named)
    with pytest.raises(ExportError, match=rf"transformers_weights: got {named!r}, expected a file in the"):
        open_checkpoint(str(model))


@pytest.mark.parametrize("left", ["an index of files that are gone", "an index and its files"])
def test_one_file_of_weights_comes_before_an_index(left: str, sharded: Path) -> None:
    """As in transformers: one file that was saved over a checkpoint in several is what counts."""
    old = bind(sharded)
    new = {name: tensor + 1 for name, tensor in load_shards(sharded).items()}
    save_file(new, sharded / WEIGHTS, {"format": "pt"})
    if left == "an index of files that are gone":
        for path in shards(sharded):
            path.unlink()
    got = bind(sharded)
    assert got.keys() == old.keys()
    assert all(torch.equal(got[name], old[name] + 1) for name in old)


def load_shards(model: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in several files."""
    return {name: tensor for path in shards(model) for name, tensor in load_file(path).items()}
