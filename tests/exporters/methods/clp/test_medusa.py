"""Tests of reading Medusa's heads as a set for the method clp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from enginewright.exporters.methods.clp.head_set import WEIGHTS, read_head_set
from enginewright.exporters.methods.clp.medusa import convert
from enginewright.plugins.oracles.clp_emit import clp_emit
from enginewright.runtime.cli import main
from enginewright.runtime.errors import EnginewrightError
from tests.support.exporters.fixtures import CheckpointMaker

D, V = 64, 250


def medusa_heads(root: Path, count: int = 3, layers: int = 1, hidden: int = D) -> dict[str, np.ndarray]:
    """Write heads as Medusa's own code saves them."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i in range(count):
        tensors[f"{i}.0.linear.weight"] = rng.standard_normal((hidden, hidden)).astype(np.float32)
        tensors[f"{i}.0.linear.bias"] = rng.standard_normal(hidden).astype(np.float32)
        tensors[f"{i}.1.weight"] = rng.standard_normal((V, hidden)).astype(np.float32)
    root.mkdir()
    save_file(tensors, root / "medusa_lm_head.safetensors")
    settings = {"medusa_num_heads": count, "medusa_num_layers": layers, "base_model_name_or_path": "somewhere"}
    (root / "config.json").write_text(json.dumps(settings))
    return tensors


@pytest.mark.parametrize("k", [None, 3])
def test_every_head_drafts_what_medusa_says(k: int | None, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    made = medusa_heads(tmp_path / "medusa")
    arguments = ["tune", "medusa", "--heads", str(tmp_path / "medusa"), "--output", str(tmp_path / "heads")]
    arguments += ["--model", str(checkpoint("qwen2"))]
    assert main([*arguments, *([] if k is None else ["--k", str(k)])]) == 0
    heads, found = read_head_set(tmp_path / "heads"), load_file(tmp_path / "heads" / WEIGHTS)
    count = (k or 4) - 1
    assert heads.shape.extra == count
    states = np.random.default_rng(1).standard_normal((5, D))
    stacked = {
        f"{side}_{part}": np.stack([found[f"heads.{j}.{side}.{part}"] for j in range(count)])
        for side, part in (("up", "weight"), ("up", "bias"), ("out", "weight"), ("out", "bias"))
    }
    classifier = {f"classifier_{part}": found[f"classifier.{part}"] for part in ("weight", "bias")}
    settings = {"k": count + 1, "tau": 0.3, "activation": 1, "residual": int(heads.residual)}
    tokens, counts = clp_emit(states, np.zeros(5, np.int64), **classifier, **stacked, **settings)
    assert (counts == count + 1).all()
    for i in range(count):
        z = states @ made[f"{i}.0.linear.weight"].T + made[f"{i}.0.linear.bias"]
        logits = (states + z / (1 + np.exp(-z))) @ made[f"{i}.1.weight"].T
        np.testing.assert_array_equal(tokens[:, 1 + i], logits.argmax(1))


def spoil(root: Path, changes: dict[str, np.ndarray | None]) -> None:
    """Write heads, some tensors of which are others or missing."""
    tensors = {**medusa_heads(root), **changes}
    save_file({name: x for name, x in tensors.items() if x is not None}, root / "medusa_lm_head.safetensors")


def test_heads_that_cannot_be_read(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    model = str(checkpoint("qwen2"))

    def fails(name: str, message: str, heads: int | None = None) -> None:
        with pytest.raises(EnginewrightError, match=message):
            convert(tmp_path / name, model, tmp_path / "heads", heads)
        assert not (tmp_path / "heads").exists()

    medusa_heads(tmp_path / "deep", layers=2)
    fails("deep", "got 2 blocks in a head, expected 1")
    medusa_heads(tmp_path / "narrow", hidden=32)
    fails("narrow", r"0.0.linear.weight: got shape \[32, 32\], expected \[64, 64\]; the heads are for another model")
    spoil(tmp_path / "wide", {"1.1.weight": np.zeros((V + 6, D), np.float32)})
    fails("wide", r"1.1.weight: got shape \[256, 64\], expected \[250, 64\]; the heads are for another model")
    spoil(tmp_path / "holes", {"2.0.linear.bias": None})
    fails("holes", r"2.0.linear.bias: got no such tensor, expected \[64\]")
    spoil(tmp_path / "broken", {"0.0.linear.bias": np.full(D, np.nan, np.float32)})
    fails("broken", "tensor '0.0.linear.bias' holds NaN or infinity")
    spoil(tmp_path / "empty", {f"{i}.{part}": None for i in range(3) for part in ("1.weight", "0.linear.weight")})
    fails("empty", "got 0 heads, of which 0 are wanted; expected 1 to 15")
    fails("nowhere", "config.json: not found")
    medusa_heads(tmp_path / "few")
    fails("few", "got 3 heads, of which 4 are wanted", heads=4)
    (tmp_path / "few/medusa_lm_head.safetensors").rename(tmp_path / "few/medusa_lm_head.pt")
    fails("few", "medusa_lm_head.pt is a pickle, which can run code when read")
