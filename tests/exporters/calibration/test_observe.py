"""Tests that `observe` shows what the layers of the whole model read, block by block."""

from __future__ import annotations

import dataclasses
import gc
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from enginewright.exporters.calibration.observe import observe
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError
from tests.support.exporters.adapted import Base, make_base

BATCHES = [torch.arange(3, 11)[None] * 7 % 250, torch.arange(1, 6)[None] * 11 % 250]  # of two lengths


def layers_of(base: Base) -> dict[str, torch.nn.Module]:
    """The linear layers of the decoder by their parameters' names."""
    return {
        f"{name}.weight": module
        for name, module in base.model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }


def inputs_in_the_whole_model(base: Base) -> dict[tuple[str, int], torch.Tensor]:
    """The inputs of each linear layer of the decoder by its parameter and batch, from hooks on the whole model."""
    found: dict[tuple[str, int], torch.Tensor] = {}
    for number, batch in enumerate(BATCHES):

        def keep(name: str, x: torch.Tensor, number: int = number) -> None:
            found[name, number] = x

        hooks = [
            module.register_forward_pre_hook(lambda _, x, name=name: keep(name, x[0]))
            for name, module in layers_of(base).items()
        ]
        with torch.no_grad():
            base.model(input_ids=batch)
        for hook in hooks:
            hook.remove()
    return found


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe"])
def test_inputs_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    base = make_base(family, tmp_path / "base")
    shown: dict[tuple[str, int], torch.Tensor] = {}
    observe(base.checkpoint, base.weights, BATCHES, lambda name, batch, x: shown.update({(name, batch): x}))
    expected = inputs_in_the_whole_model(base)
    assert shown.keys() == expected.keys() and len(shown) >= 2 * 4 * 2
    for key, x in expected.items():
        torch.testing.assert_close(shown[key], x, atol=2e-6, rtol=1e-5)


def test_order_and_choice(tmp_path: Path) -> None:
    """Block by block, in each batch by batch; and only what is wanted."""
    base = make_base("llama", tmp_path / "base")
    order: list[tuple[str, int]] = []
    wanted = re.compile(r".*\.(q|o)_proj\.weight").fullmatch
    observe(
        base.checkpoint,
        base.weights,
        BATCHES,
        lambda name, batch, _: order.append((name, batch)),
        wanted=lambda name: bool(wanted(name)),
    )
    assert order == [
        (f"model.layers.{block}.self_attn.{layer}_proj.weight", batch)
        for block in (0, 1)
        for batch in (0, 1)
        for layer in "qo"
    ]


@pytest.mark.parametrize("batches", [[], [torch.empty(1, 0, dtype=torch.int64)], [torch.tensor([1, 2])]])
def test_no_tokens_are_refused(batches: list[torch.Tensor], tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    with pytest.raises(ExportError, match="tokens: got none"):
        observe(base.checkpoint, base.weights, batches, lambda *_: None)


def test_infinite_states_are_refused_with_their_block(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    with torch.no_grad():
        base.model.get_submodule("model.layers.1.input_layernorm").weight.fill_(3e38)
    base.model.save_pretrained(tmp_path / "broken")
    broken = make_base("llama", tmp_path / "broken")
    with pytest.raises(ExportError, match=r"model\.layers\.1: its output is NaN or infinite"):
        observe(broken.checkpoint, broken.weights, BATCHES, lambda *_: None)


def test_one_block_is_in_memory(tmp_path: Path) -> None:
    """While inputs are shown, no weights are alive but those of the block that is run."""
    base = make_base("llama", tmp_path / "base")
    alive: dict[int, tuple[str, int]] = {}

    def watched(name: str, weight: Weight) -> Weight:
        def load() -> np.ndarray:
            values = np.array(weight.load(), np.float32)
            alive[id(values)] = name, values.nbytes
            weakref.finalize(values, alive.pop, id(values))
            return values

        return dataclasses.replace(weight, load=load, parts=())

    watched_weights = {name: watched(name, weight) for name, weight in base.weights.items()}
    seen: set[str] = set()

    def record(name: str, batch: int, x: torch.Tensor) -> None:
        block = name.partition(".self_attn")[0].partition(".mlp")[0]
        seen.update(each for each, _ in alive.values())
        assert all(each.startswith(f"{block}.") for each, _ in alive.values()), sorted(alive.values())

    observe(base.checkpoint, watched_weights, BATCHES, record)
    assert len(seen) == 2 * 9, "the weights of both blocks were there, one after the other"
    gc.collect()
    assert not alive
