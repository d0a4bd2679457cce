"""Refusals of a calibration, with their messages; and blocks that are built in another way than the families'."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama import modeling_llama

from enginewright.exporters.calibration import (
    Calibration,
    CalibrationJob,
    LinearGroup,
    QuantizedForm,
    blocks,
    calibrate,
)
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import Skeleton, load_skeleton
from enginewright.exporters.weights.weight import Weight, quantized_weight
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.calibration_reference import Reference, draw_tokens, round_group, round_rows, start
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker

TOKENS = draw_tokens(2, 20)
SELF = Calibration(objective="self", batch_tokens=20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "both"}, "objective: got 'both', expected one of self, cross, float"),
        ({"dtype": "float16"}, "dtype: got 'float16', expected one of float32, bfloat16"),
        ({"device": "tpu"}, "device: got 'tpu', expected cpu, cuda or auto"),
        ({"batch_tokens": 0}, "batch_tokens: got 0"),
        ({"max_context": 0}, "max_context: got 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        dataclasses.replace(SELF, **changes)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((0, 5), np.int64), r"got int64\[0, 5\]"),
        (np.zeros((5, 0), np.int64), r"got int64\[5, 0\]"),
        (np.zeros(5, np.int64), r"got int64\[5\]"),
        (np.zeros((1, 5), np.int32), r"got int32\[1, 5\]"),
        (np.array([[0, 250]]), "got 250, expected 0 to 249"),
        (np.array([[0, -1]]), "got -1, expected 0 to 249"),
        (np.zeros((1, 513), np.int64), "got sequences of 513, expected at most 512"),
    ],
)
def test_tokens_are_checked(tokens: Any, message: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        start(checkpoint("llama"), tokens, SELF, round_group, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"group_size": 40},
            r"layers\.0\.self_attn\.q_proj\.weight: got a group size of 40, expected a divisor of its 60",
        ),
        (
            {"group_size": 20},
            r"layers\.0\.mlp\.down_proj\.weight: got a group size of 20, expected a divisor of its 96",
        ),
        ({"group_size": 0}, "got a group size of 0"),
        ({"bits": 1}, "bits: got 1, expected 2 to 8"),
        ({"bits": 9}, "bits: got 9, expected 2 to 8"),
        ({"exclude": ["*"]}, "no linear layer to quantise"),
    ],
)
def test_the_form_is_checked_before_any_work(
    options: dict[str, Any], message: str, checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        start(checkpoint("llama"), TOKENS, SELF, round_group, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        (torch.int8, (60, 1)),
        (torch.int32, (120, 1)),
        (torch.int8, (120, 2)),
    ],
)
def test_what_the_quantiser_returns_is_checked(
    codes: torch.dtype, scales: tuple[int, int], checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"q_proj\.weight: got codes .* from the quantiser, expected int8\[120, 60\]"):
        start(
            checkpoint("llama"),
            TOKENS,
            SELF,
            lambda group: (torch.zeros(120, 60, dtype=codes), torch.ones(scales)),
            tmp_path,
        )
    for bad in (
        round_rows(torch.randn(120, 60), bits=8, group_size=None),
        (torch.zeros(120, 60).char(), torch.full((120, 1), torch.nan)),
    ):
        with pytest.raises(ExportError, match="from the quantiser"):
            start(checkpoint("llama"), TOKENS, SELF, lambda group, bad=bad: bad, tmp_path)


def change_weight(path: Path, name: str, weight: Weight, folder: Path, objective: str = "self") -> None:
    """Calibrate a checkpoint with another weight in place of one of its own."""
    opened = open_checkpoint(str(path))
    weights = {**bind_parameters(opened, blocks.load_blocks(opened, None).skeleton.model), name: weight}
    settings = dataclasses.replace(SELF, objective=objective)
    form = QuantizedForm(bits=4, group_size=None)
    job = CalibrationJob(
        checkpoint=opened, weights=weights, tokens=TOKENS, settings=settings, form=form, folder=folder, key=""
    )
    calibrate(job, round_group)


@pytest.mark.parametrize("objective", ["self", "cross", "float"])
def test_activations_that_are_not_finite_are_named(objective: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    opened = open_checkpoint(str(checkpoint("qwen3")))
    found = bind_parameters(opened, blocks.load_blocks(opened, None).skeleton.model)[name]
    huge = found.derive(found.shape, lambda x: x * np.float32(1e38))
    with pytest.raises(ExportError, match=r"layers\.0\.mlp\.down_proj\.weight: its inputs are NaN or infinite"):
        change_weight(checkpoint("qwen3"), name, huge, tmp_path, objective)


def test_weights_that_are_quantised_already_are_refused(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    path, name = checkpoint("qwen3"), "model.layers.1.mlp.up_proj.weight"
    results = start(path, TOKENS, SELF, round_group, tmp_path / "first")
    with pytest.raises(ExportError, match=rf"{name}: is quantised already"):
        change_weight(path, name, quantized_weight((96, 64), results[name]), tmp_path / "second")


def test_a_folder_that_is_a_file_is_refused(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written or read"):
        start(checkpoint("llama"), TOKENS, SELF, round_group, tmp_path / "file")


def test_depth_attention_is_refused(tmp_path: Path) -> None:
    save_checkpoint("qwen3", tmp_path / "model", depth_attention={"stride": 1})
    with pytest.raises(UnsupportedError, match="depth attention"):
        start(tmp_path / "model", TOKENS, SELF, round_group, tmp_path / "run")


def test_models_without_blocks_are_refused(checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: Any, **kwargs: Any) -> Skeleton:
        skeleton = load_skeleton(*args, **kwargs)
        del skeleton.model.model.layers[1]
        return skeleton

    monkeypatch.setattr(blocks, "load_skeleton", build)
    with pytest.raises(ExportError, match="got 0 lists of 2 modules, expected one, the decoder's blocks"):
        blocks.load_blocks(open_checkpoint(str(checkpoint("llama"))), None)


class Routed(torch.nn.Module):
    """Experts that are linear layers; a token's first numbers choose its expert, and no token chooses the last one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size
        self.experts = torch.nn.ModuleList(torch.nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat, out = x.reshape(-1, x.shape[-1]), torch.zeros_like(x).reshape(-1, x.shape[-1])
        chosen = flat[:, :3].argmax(-1)
        for number in chosen.unique().tolist():
            out[chosen == number] = self.experts[number](flat[chosen == number])
        return out.reshape(x.shape)


@pytest.fixture
def routed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with such experts."""
    monkeypatch.setattr(modeling_llama, "LlamaMLP", Routed)
    save_checkpoint("llama", tmp_path / "routed")
    return tmp_path / "routed"


@pytest.mark.parametrize("objective", ["self", "float"])
def test_experts_that_are_linear_layers(objective: str, routed: Path, tmp_path: Path) -> None:
    tokens = draw_tokens(6, 2)  # the first sequence does not reach every expert that the others do
    reference, seen = Reference(routed, tokens), dict[str, int]()

    def quantize(group: LinearGroup) -> tuple[torch.Tensor, torch.Tensor]:
        (*_, name) = group.names
        seen[name] = group.tokens
        if group.tokens:
            reference.check(group, objective, 2e-5)
        else:
            assert not group.hessian.any()
        codes, scales = round_rows(group.weights, bits=4, group_size=None)
        if objective == "self":
            reference.replace(group, codes, scales)
        return codes, scales

    settings = Calibration(objective=objective, batch_tokens=4)
    results = start(routed, tokens, settings, quantize, tmp_path / "run")
    assert sorted(results) == sorted(reference.linears)
    for block in range(2):
        names = [f"model.layers.{block}.mlp.experts.{expert}.weight" for expert in range(4)]
        assert sum(seen[name] for name in names) == 12 and seen[names[3]] == 0
        assert all(seen[name] for name in names[:3]), "the case is meant to reach three experts"
        assert [*seen].index(names[3]) > max([*seen].index(name) for name in names[:3])


def test_routed_layers_have_no_cross_moments(routed: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SELF, objective="cross")
    with pytest.raises(UnsupportedError, match="reads only tokens routed to it"):
        start(routed, TOKENS, settings, round_group, tmp_path / "run")


class Twice(torch.nn.Module):
    """A layer that runs twice."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.again = torch.nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.again(self.again(x))
        return result


def test_layers_that_run_twice_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "LlamaMLP", Twice)
    save_checkpoint("llama", tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0\.mlp\.again: runs twice in one pass"):
        start(tmp_path / "model", TOKENS, SELF, round_group, tmp_path / "run")


class Scaled(modeling_llama.LlamaDecoderLayer):
    """A block with a further argument about the tokens."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs.pop("ids", None)
        result: torch.Tensor = super().forward(hidden_states, *args, **kwargs)
        return result


def test_blocks_that_read_the_tokens_are_refused(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = modeling_llama.LlamaModel.forward

    def tell(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return forward(self, input_ids=input_ids, **{**kwargs, "ids": input_ids})

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", tell)
    monkeypatch.setattr(modeling_llama, "LlamaDecoderLayer", Scaled)
    with pytest.raises(UnsupportedError, match="what its blocks are called with depends on the tokens"):
        start(checkpoint("llama"), TOKENS, SELF, round_group, tmp_path / "run")


class Loose(torch.nn.Module):
    """An MLP with a tuple, of which a norm is read, and with a layer that has the same input as others."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size
        self.inner = Pair(size)
        self.gate = torch.nn.Linear(size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.view(-1, x.shape[-1])
        first, second = self.inner(x)
        return first + second * self.gate(flat).sigmoid().view(*x.shape[:-1], 1)


class Pair(torch.nn.Module):
    """Two outputs, both of them read."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(size, size), torch.nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left = self.left(x)
        return left, self.right(left.tanh())


@pytest.mark.parametrize("objective", ["self", "cross"])
def test_blocks_of_another_make(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that are tuples, read as a whole; a view of an input is the same input."""
    monkeypatch.setattr(modeling_llama, "LlamaMLP", Loose)
    save_checkpoint("llama", tmp_path / "model")
    tokens = draw_tokens(3, 9)
    reference, seen = Reference(tmp_path / "model", tokens), list[tuple[str, ...]]()

    def quantize(group: LinearGroup) -> tuple[torch.Tensor, torch.Tensor]:
        reference.check(group, objective, 2e-5)
        seen.append(tuple(name.split(".")[-2] for name in group.names))
        codes, scales = round_rows(group.weights, bits=4, group_size=None)
        reference.replace(group, codes, scales)
        return codes, scales

    start(tmp_path / "model", tokens, dataclasses.replace(SELF, objective=objective), quantize, tmp_path / "run")
    assert seen == 2 * [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("left", "gate"), ("right",)]
