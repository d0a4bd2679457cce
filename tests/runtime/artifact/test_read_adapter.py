"""Tests of adapters read for a condition: values against the factors that were written, and refusals with their messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from enginewright.runtime.artifact.adapters.read_adapter import read_adapter
from enginewright.runtime.artifact.manifest import AdapterLayout, AdapterTarget, Condition, ConditionTensor
from enginewright.runtime.artifact.safetensors_file import read_floats
from enginewright.runtime.errors import ArtifactError, UnsupportedError

LAYERS, INPUTS, OUTPUTS, RANK = (0, 2), 6, 5, 4
TARGETS = {
    "q_proj": AdapterTarget(module="model.layers.{}.q_proj", layers=LAYERS, inputs=INPUTS, outputs=OUTPUTS),
    "o_proj": AdapterTarget(module="model.layers.{}.o_proj", layers=LAYERS, inputs=OUTPUTS, outputs=INPUTS),
}
CONDITION = Condition(
    capacity=2,
    scaled=True,
    tensors={
        f"{name}_{part}": ConditionTensor(dtype="float16", shape=(2, RANK, size))
        for name, target in TARGETS.items()
        for part, size in (("a", target.inputs), ("b", target.outputs))
    },
    adapters=AdapterLayout(rank=RANK, targets=TARGETS),
)
Tensors = dict[str, torch.Tensor]


def make_tensors(rank: int = 3, dtype: torch.dtype = torch.float32) -> Tensors:
    """Factors of q_proj in layer 2 and of o_proj in layer 0."""
    generator = torch.Generator().manual_seed(rank)
    sizes = {"model.layers.2.q_proj": (INPUTS, OUTPUTS), "model.layers.0.o_proj": (OUTPUTS, INPUTS)}
    found = {}
    for module, (inputs, outputs) in sizes.items():
        found[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator).to(dtype)
        found[f"base_model.model.{module}.lora_B.weight"] = 1e-3 * torch.randn(outputs, rank, generator=generator).to(
            dtype
        )
    return found


def write(root: Path, tensors: Tensors, **settings: Any) -> Path:
    """Write an adapter as PEFT does."""
    root.mkdir(exist_ok=True)
    given = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, **settings}
    (root / "adapter_config.json").write_text(json.dumps(given))
    save_file(tensors, root / "adapter_model.safetensors")
    return root


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("settings", "scaling"), [({}, 2.0), ({"use_rslora": True}, 6 / 3**0.5)])
def test_products_are_the_adapters(
    settings: dict[str, Any], scaling: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = make_tensors(dtype=dtype)
    values = read_adapter(write(tmp_path / "x", tensors, **settings), CONDITION)
    assert {name: (x.dtype, x.shape) for name, x in values.items()} == {
        name: (np.float16, spec.shape) for name, spec in CONDITION.tensors.items()
    }
    for target, place, module in (("q_proj", 1, "model.layers.2.q_proj"), ("o_proj", 0, "model.layers.0.o_proj")):
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].double().numpy() for part in "AB")
        got = values[f"{target}_b"][place].astype(np.float64).T @ values[f"{target}_a"][place].astype(np.float64)
        np.testing.assert_allclose(got, scaling * b @ a, atol=2e-3 * np.abs(scaling * b @ a).max())
        assert not values[f"{target}_a"][1 - place].any() and not values[f"{target}_b"][1 - place].any()
        assert not values[f"{target}_a"][place, 3:].any()


def test_numbers_beyond_halves_are_balanced(tmp_path: Path) -> None:
    """A of 1e6 and B of 1e-7 make an ordinary product."""
    tensors = {key: x * (1e6 if "lora_A" in key else 1e-4) for key, x in make_tensors().items()}
    values = read_adapter(write(tmp_path / "x", tensors), CONDITION)
    a, b = (tensors[f"base_model.model.model.layers.2.q_proj.lora_{part}.weight"].double().numpy() for part in "AB")
    got = values["q_proj_b"][1].astype(np.float64).T @ values["q_proj_a"][1].astype(np.float64)
    np.testing.assert_allclose(got, 2 * b @ a, atol=4e-3 * np.abs(b @ a).max())


def changed(change: Callable[[Tensors], object]) -> Tensors:
    """The tensors after a change in place."""
    tensors = make_tensors()
    change(tensors)
    return tensors


IN_Q, IN_O = "base_model.model.model.layers.2.q_proj", "base_model.model.model.layers.0.o_proj"
WRONG: dict[str, tuple[Tensors, dict[str, Any], type[Exception], str]] = {
    "another layer": (
        changed(lambda t: t.update({k.replace("q_proj", "k_proj"): t.pop(k) for k in list(t) if "q_proj" in k})),
        {},
        ArtifactError,
        r"adapts 'model\.layers\.2\.k_proj', and the engine adds adapters to model\.layers\.N\.q_proj, ",
    ),
    "another size": (
        changed(lambda t: t.update({f"{IN_Q}.lora_A.weight": torch.ones(3, 7)})),
        {},
        ArtifactError,
        r"got A \[3, 7\] and B \[5, 3\], expected \[r, 6\] and \[5, r\]",
    ),
    "too large a rank": (make_tensors(5), {"r": 5}, ArtifactError, "got rank 5, and the engine takes 4 at most"),
    "another rank than said": (make_tensors(2), {}, ArtifactError, "got rank 2, expected 3 by adapter_config.json"),
    "half a pair": (changed(lambda t: t.pop(f"{IN_Q}.lora_B.weight")), {}, ArtifactError, "has lora_A alone"),
    "two adapters": (
        changed(lambda t: t.update({f"{IN_Q}.lora_A.other.weight": torch.ones(3, 6)})),
        {},
        ArtifactError,
        "expected one adapter",
    ),
    "a whole module": (
        changed(lambda t: t.update({"base_model.model.norm.weight": torch.ones(3)})),
        {},
        UnsupportedError,
        "got the tensor 'base_model.model.norm.weight'",
    ),
    "NaN": (
        changed(lambda t: t[f"{IN_O}.lora_A.weight"].fill_(torch.nan)),
        {},
        ArtifactError,
        r"layers\.0\.o_proj': got NaN or infinity",
    ),
    "too large": (
        changed(lambda t: t.update({key: x.fill_(1e30) for key, x in t.items()})),
        {},
        ArtifactError,
        "expected a product in the range of halves",
    ),
    "integers": (
        changed(lambda t: t.update({f"{IN_Q}.lora_A.weight": torch.ones(3, 6, dtype=torch.int32)})),
        {},
        ArtifactError,
        "no safetensors file of floats",
    ),
    "nothing": ({}, {}, ArtifactError, "holds no adapter"),
    "DoRA": (make_tensors(), {"use_dora": True}, UnsupportedError, "got use_dora"),
    "whole modules": (make_tensors(), {"modules_to_save": ["norm"]}, UnsupportedError, "got modules_to_save"),
    "PiSSA": (make_tensors(), {"init_lora_weights": "pissa"}, UnsupportedError, "got init_lora_weights"),
    "no number": (make_tensors(), {"lora_alpha": "6"}, ArtifactError, "lora_alpha: got '6', expected a finite number"),
    "another type": (make_tensors(), {"peft_type": "IA3"}, UnsupportedError, "got peft_type 'IA3'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    tensors, settings, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        read_adapter(write(tmp_path / "x", tensors, **settings), CONDITION)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: not found"):
        read_adapter(tmp_path, CONDITION)
    root = write(tmp_path / "x", make_tensors())
    (root / "adapter_config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="got a JSON list, expected an object"):
        read_adapter(root, CONDITION)
    write(root, make_tensors())
    weights = root / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:4], whole[:40], whole[:-1], b"\xff" * 60, b"\x02" + b"\0" * 7 + b"[]"):
        weights.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors: (not a whole|no) safetensors file"):
            read_adapter(root, CONDITION)
    weights.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_adapter(root, CONDITION)


def test_floats_of_all_widths_are_read(tmp_path: Path) -> None:
    numbers = torch.tensor([[0.0, -1.5], [3.25, 65280.0]])
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    save_file({str(kind): numbers.to(kind) for kind in kinds}, tmp_path / "x.safetensors", {"format": "pt"})
    found = read_floats(tmp_path / "x.safetensors", 64)
    for kind in kinds:
        np.testing.assert_array_equal(found[str(kind)], numbers.to(kind).float().numpy())
