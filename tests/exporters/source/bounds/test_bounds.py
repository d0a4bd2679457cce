"""Tests of absurd configs: each is refused within a moment and little memory, before a model of that size is made."""

from __future__ import annotations

import math
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from enginewright.exporters.source.bounds.bounded_building import BoundedBuilding, room_for
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton, load_skeleton
from enginewright.runtime.errors import EnginewrightError, ExportError
from tests.support.exporters.checkpoints import edit_config
from tests.support.exporters.fixtures import CheckpointMaker

ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers: got 1000000, expected a number of layers up to 10000"),
    "nested layers": ({"vision_config": {"depth": 10**9}}, "depth: got 1000000000, expected a number of layers"),
    "more layers than are stored": (
        {"num_hidden_layers": 3000, "layer_types": None},
        "describes a model of more than 1[0-9]{3} tensors",
    ),
    "labels": ({"num_labels": 10**9}, "num_labels: got 1000000000, expected a number up to"),
    "head size": ({"head_dim": 10**9}, r"describes a tensor of shape \[500000000\] that is computed"),
    "no heads": ({"num_attention_heads": 0}, "cannot make a qwen3 model of it"),
    "no KV heads": ({"num_key_value_heads": 0}, "cannot make a qwen3 model of it"),
    "hidden size": ({"hidden_size": 10**9}, r"expected \[250, 1000000000\] from config.json"),
    "negative size": ({"hidden_size": -8}, "cannot make a qwen3 model of it"),
    "an odd type": ({"dtype": "float99"}, "transformers cannot read it .AttributeError"),
    "a type that is a function": ({"dtype": "load"}, "transformers cannot read it"),
    "negative context": (
        {"max_position_embeddings": -5},
        "max_position_embeddings: got -5, expected a number of tokens",
    ),
    "long context": ({"max_position_embeddings": 10**15}, "max_position_embeddings: got 1000000000000000, expected"),
    "NaN": ({"rope_theta": math.nan}, "NaN, expected a finite number"),
    "no base": ({"rope_parameters": {**ROTARY, "rope_theta": 0}}, "whose frequencies are not finite"),
    "negative base": ({"rope_parameters": {**ROTARY, "rope_theta": -5.0}}, "whose frequencies are not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_absurd_configs_are_refused(checkpoint: CheckpointMaker, tmp_path: Path, case: str) -> None:
    changes, message = WRONG[case]
    model = Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "model"))
    edit_config(model, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(EnginewrightError, match=message):
            opened = open_checkpoint(str(model))
            bind_parameters(opened, load_skeleton(opened, attention="eager", max_context=64).model)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_a_scaled_context_has_a_bound(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    model = Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "model"))
    edit_config(model, rope_parameters={**ROTARY, "rope_type": "yarn", "factor": 1e308})
    assert open_checkpoint(str(model)).longest_context == 1 << 31


def test_parameters_go_to_the_meta_device_and_the_rest_is_real() -> None:
    with BoundedBuilding():
        layer = torch.nn.Linear(4, 3)
        positions = torch.arange(5)
        product = positions.float() * 2
    assert layer.weight.is_meta and not positions.is_meta and product.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(1 << 15),
        lambda: torch.arange(10**12),
        lambda: torch.outer(torch.arange(1 << 15), torch.arange(1 << 15)),
        lambda: torch.arange(1 << 15)[:, None] * torch.arange(1 << 15)[None],
        lambda: torch.zeros(2).repeat(1 << 30),
    ],
)
def test_computed_tensors_have_a_bound(make: Any) -> None:
    with BoundedBuilding(), pytest.raises(ExportError, match=r"describes a tensor of shape .* that is computed"):
        make()


def test_the_number_of_tensors_has_a_bound() -> None:
    with BoundedBuilding(room_for([])):
        for _ in range(1000):
            torch.empty(1)
        with pytest.raises(ExportError, match="describes a model of more than 1000 tensors"):
            torch.empty(1)


def test_what_is_filled_has_no_value_where_it_is_large_alone_or_together() -> None:
    """Weights of norms are ones, and Llama 4's experts are zeros: parameters, whose values are stored."""
    with BoundedBuilding(room_for([])):
        assert torch.ones(1 << 15, 1 << 15).is_meta
        assert [torch.zeros(1 << 28, dtype=torch.int8).is_meta for _ in range(3)] == [False, False, True]
        assert torch.nn.Parameter(torch.zeros(1 << 28, dtype=torch.int8), requires_grad=False).is_meta
    with BoundedBuilding(room_for([3 << 28])):
        assert not any(torch.zeros(1 << 28, dtype=torch.int8).is_meta for _ in range(3))


def test_experts_of_the_size_of_llama_4() -> None:
    text = AutoConfig.for_model("llama4_text")
    text.num_hidden_layers, text.layer_types, text.no_rope_layers = 2, text.layer_types[:2], text.no_rope_layers[:2]
    model = build_skeleton(text, attention="eager", max_context=64).model
    assert sum(each.numel() for each in model.parameters()) > 1 << 32
