"""Tests that checkpoint tensors become the parameters that transformers itself loads, under all names of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton
from tests.support.exporters.families import FAMILIES
from tests.support.exporters.fixtures import CheckpointMaker


def stored_names(model: Path) -> list[str]:
    """Names of the tensors in the checkpoint."""
    with safe_open(model / "model.safetensors", framework="pt") as f:
        return list(f.keys())


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_equal_what_transformers_loads(family: str, checkpoint: CheckpointMaker) -> None:
    path = checkpoint(family)
    opened = open_checkpoint(str(path))
    weights = bind_parameters(opened, build_skeleton(opened.config, attention="eager", max_context=64).model)
    expected = dict(
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).named_parameters(remove_duplicate=False)
    )
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert torch.equal(torch.from_numpy(weight.load()), expected[name].data), name
        assert weight.shape == tuple(expected[name].shape)


def test_the_conversion_is_worth_its_test(checkpoint: CheckpointMaker) -> None:
    """Mixtral stores one matrix per expert, and the model holds one tensor of all."""
    path = checkpoint("mixtral")
    opened = open_checkpoint(str(path))
    names = bind_parameters(opened, build_skeleton(opened.config, attention="eager", max_context=64).model).keys()
    assert any("experts.0." in name for name in stored_names(path))
    assert not any("experts.0." in name for name in names)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_an_expert_is_made_without_the_others(family: str, checkpoint: CheckpointMaker) -> None:
    """Both experts stored one by one (mixtral) and experts in one tensor (gpt_oss)."""
    opened = open_checkpoint(str(checkpoint(family)))
    weights = bind_parameters(opened, build_skeleton(opened.config, attention="eager", max_context=64).model)
    experts = {name: weight for name, weight in weights.items() if len(weight.shape) == 3}
    assert experts
    for name, weight in experts.items():
        whole = torch.from_numpy(weight.load())
        assert len(weight.parts) == len(whole), name
        for index, part in enumerate(weight.parts):
            assert torch.equal(torch.from_numpy(part.load()), whole[index : index + 1]), name


def test_a_tied_bias_is_stored_once(tmp_path: Path) -> None:
    """The output bias of bert has two names and one tensor; it is no product of `torch.empty`, as weights are."""
    config = AutoConfig.for_model(
        "bert", vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    model.save_pretrained(tmp_path)
    skeleton = build_skeleton(open_checkpoint(str(tmp_path)).config, attention="eager", max_context=64)
    weights = bind_parameters(open_checkpoint(str(tmp_path)), skeleton.model)
    assert weights["cls.predictions.decoder.bias"] is weights["cls.predictions.bias"]
    assert (weights["cls.predictions.bias"].load() == model.cls.predictions.bias.detach().numpy()).all()
