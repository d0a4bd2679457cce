"""Tests of the estimate of heads' gates against transformers' modules, in families with windows, norms of queries and sinks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.methods.evict.head_gates import Gates
from enginewright.exporters.methods.evict.mean_heads import estimate_gates
from enginewright.exporters.methods.reasonalloc.measure_demand import open_model
from enginewright.exporters.methods.reasonalloc.written_texts import WrittenText
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import UnsupportedError
from tests.support.exporters.families import FAMILIES, save_checkpoint

TEXTS = tuple(
    WrittenText(
        ids=tuple(torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(length)).tolist()), given=0
    )
    for length in (150, 47)
)
REPEATS = 130  # more than a block of queries


def estimate(path: Path, repeats: int = REPEATS) -> Gates:
    return estimate_gates(open_model(open_checkpoint(str(path))), TEXTS, repeats)


def direct(path: Path, layer: int) -> list[float]:
    """The gates of a layer, from what its projections and norms give to transformers' own rotation."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    attention = model.model.layers[layer].self_attn
    found: dict[str, list[torch.Tensor]] = {"q": [], "k": []}
    for name, kept in found.items():
        norm = getattr(attention, f"{name}_norm", None)
        module = getattr(attention, f"{name}_proj") if norm is None else norm
        module.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output[0]))
    with torch.no_grad():
        for text in TEXTS:
            model(input_ids=torch.tensor([text.ids]), use_cache=False)
        means = [_mean(kept, attention.head_dim) for kept in found.values()]
        query, key = _rotated(model, attention, *means)
    scale = attention.scaling
    logits = (query[:, -1].reshape(key.shape[0], -1, 1, query.shape[-1]) @ key[:, None].mT)[:, :, 0] * scale
    if softcap := getattr(attention, "attn_logit_softcapping", None):
        logits = softcap * torch.tanh(logits / softcap)
    if hasattr(attention, "sinks"):
        logits = torch.cat([logits, attention.sinks.reshape(*logits.shape[:2], 1)], dim=-1)
    weights = logits.softmax(-1)[..., :REPEATS].mean(1).detach().double().numpy()
    return np.cumsum(weights, axis=-1).mean(axis=-1).tolist()  # type: ignore[no-any-return]


def _mean(kept: list[torch.Tensor], dim: int) -> torch.Tensor:
    """[heads, D] of outputs [heads, T, D], [T, heads, D] or [T, heads * D]."""
    rows = [each.reshape(len(text.ids), -1, dim) if each.shape[0] == len(text.ids) else each.transpose(0, 1)
            for each, text in zip(kept, TEXTS, strict=True)]  # fmt: skip
    return torch.cat(rows).mean(0)


def _rotated(
    model: PreTrainedModel, attention: torch.nn.Module, query: torch.Tensor, key: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The means at each of REPEATS positions, [heads, T, D]."""
    repeated = [each[None, :, None].expand(-1, -1, REPEATS, -1) for each in (query, key)]
    kinds = (attention.layer_type,) if model.config.model_type == "gemma3_text" else ()
    cos, sin = model.model.rotary_emb(repeated[0], torch.arange(REPEATS)[None], *kinds)
    rotate = sys.modules[type(model).__module__].apply_rotary_pos_emb
    found = rotate(*repeated, cos, sin)
    return found[0][0], found[1][0]


@pytest.mark.parametrize(
    ("family", "full"),
    [("llama", [0, 1]), ("qwen3", [0, 1]), ("gemma2", [1]), ("gemma3_text", [1]), ("gpt_oss", [1])],
)
def test_gates_are_those_of_transformers_modules(family: str, full: list[int], tmp_path: Path) -> None:
    save_checkpoint(family, tmp_path, gain=4.0)
    found = estimate(tmp_path)
    assert [layer for layer, each in enumerate(found) if each is not None] == full
    for layer in full:
        assert found[layer] == pytest.approx(direct(tmp_path, layer), abs=2e-4)
        assert len(found[layer] or ()) == FAMILIES[family].get("num_key_value_heads", 2)


def test_gates_lie_between_0_and_1_and_differ(tmp_path: Path) -> None:
    save_checkpoint("qwen3", tmp_path, gain=4.0)
    gates = [gate for layer in estimate(tmp_path) for gate in layer or ()]
    assert all(0 <= gate <= 1 for gate in gates) and len(set(gates)) == 4


def test_heads_that_are_rotated_in_part_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "phi", {})
    save_checkpoint("phi", tmp_path)
    with pytest.raises(UnsupportedError, match="phi: layer 0: got queries of which not all is rotated"):
        estimate(tmp_path)
