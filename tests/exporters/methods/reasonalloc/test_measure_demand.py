"""Tests that demand is that of transformers' own attention weights, in families with windows, bounds on logits and sinks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from enginewright.exporters.methods.reasonalloc.counting_attention import ROWS, count_needed
from enginewright.exporters.methods.reasonalloc.curve import Aggregate
from enginewright.exporters.methods.reasonalloc.measure_demand import (
    DemandOptions,
    HeadMeans,
    layer_demand,
    measure_demand,
    open_model,
)
from enginewright.exporters.methods.reasonalloc.written_texts import WrittenText
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.cache.policies.reasonalloc import needed_tokens
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.packed_checkpoints import gptq_parts, random_integers, write_twins
from tests.support.paths import ROOT

TEXTS = tuple(
    WrittenText(
        ids=tuple(torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(length)).tolist()),
        given=given,
    )
    for length, given in ((ROWS + 61, 20), (47, 0))
)
POSITIONS = 12


def direct(path: Path, texts: tuple[WrittenText, ...], rho: float, heads_first: bool) -> list[list[float]]:
    """The mean counts of each layer and head, from the attention weights that transformers gives out."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    counts: list[list[list[int]]] = []
    for text in texts:
        with torch.no_grad():
            maps = model(input_ids=torch.tensor([text.ids]), output_attentions=True, use_cache=False).attentions
        for layer, found in enumerate(maps):
            weights = found[0].double().numpy()
            weights = weights.mean(axis=0, keepdims=True) if heads_first else weights
            if len(counts) <= layer:
                counts.append([[] for _ in weights])
            for position in text.positions(POSITIONS).tolist():
                for head, own in enumerate(weights[:, position]):
                    sink = 1 - own.sum()  # 0, but for a sink, which transformers leaves out
                    counts[layer][head].append(needed_tokens(own[: position + 1], rho - sink))
    return [[float(np.mean(own)) for own in layer] for layer in counts]


def measure(path: Path, texts: tuple[WrittenText, ...], rho: float = 0.93, aggregate: Aggregate = "mean") -> HeadMeans:
    options = DemandOptions(rho=rho, positions=POSITIONS, aggregate=aggregate)
    return measure_demand(open_model(open_checkpoint(str(path))), texts, options)


@pytest.mark.parametrize(
    ("family", "full"),
    [("llama", [0, 1]), ("qwen3", [0, 1]), ("gemma2", [1]), ("gemma3_text", [1]), ("gpt_oss", [1])],
)
@pytest.mark.parametrize("aggregate", ["mean", "heads_first"])
def test_counts_are_those_of_transformers_weights(
    family: str, full: list[int], aggregate: Aggregate, tmp_path: Path
) -> None:
    bounds = {"attn_logit_softcapping": 0.7} if family == "gemma2" else {}  # low enough to matter
    save_checkpoint(family, tmp_path, gain=4.0, **bounds)
    expected = direct(tmp_path, TEXTS, 0.8, aggregate == "heads_first")
    found = measure(tmp_path, TEXTS, 0.8, aggregate)
    assert [layer for layer, each in enumerate(found) if each is not None] == full
    for layer in full:
        assert found[layer] == pytest.approx(expected[layer], abs=1e-3)
        assert found[layer] != pytest.approx([1.0] * len(expected[layer])), "weights spread over several tokens"


def test_the_bundled_model_is_measured_as_transformers_computes(tmp_path: Path) -> None:
    path = ROOT / "examples/tiny-text"
    ids = torch.randint(3, 250, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = (WrittenText(ids=tuple(ids), given=10),)
    expected, found = direct(path, texts, 0.93, False), measure(path, texts)
    for layer, each in enumerate(found):
        assert each == pytest.approx(expected[layer], abs=1e-3)


def test_a_checkpoint_of_codes_is_read_as_numbers(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path / "plain", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, gain=4.0)

    def pack(_: str, shape: tuple[int, ...]) -> object:
        made = random_integers(*shape, sum(shape), bits=4, group_size=32)
        return gptq_parts(made), made.numbers

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
    packed, twin = write_twins(tmp_path / "plain", tmp_path, pack, settings)
    assert measure(packed, TEXTS) == measure(twin, TEXTS)


def test_demand_of_heads() -> None:
    heads = ((1.0, 4.0), None, (2.0, 2.5))
    assert layer_demand(heads, "mean") == (2.5, None, 2.25)
    assert layer_demand(heads, "max_head") == (4.0, None, 2.5)


@pytest.mark.parametrize("rho", [0.5, 0.93])
def test_counting_equals_the_policy_that_uses_the_curve(rho: float) -> None:
    weights = (torch.randn(40, 77, generator=torch.Generator().manual_seed(1)) * 3).softmax(-1)
    found = count_needed(weights, rho, torch.zeros(40))
    assert found.tolist() == [needed_tokens(row.double().numpy(), rho) for row in weights]


def test_a_sink_needs_no_token() -> None:
    weights = torch.tensor([[0.2, 0.1, 0.1], [0.02, 0.01, 0.0], [0.5, 0.3, 0.2]])
    assert count_needed(weights, 0.8, torch.tensor([0.6, 0.97, 0.0])).tolist() == [1, 1, 2]


def test_a_model_of_windows_alone_is_refused(tmp_path: Path) -> None:
    save_checkpoint("mistral", tmp_path)
    with pytest.raises(UnsupportedError, match="got a window in each of the 2 layers, expected one without"):
        open_model(open_checkpoint(str(tmp_path)))


@pytest.mark.parametrize(("name", "value"), [("rho", 0.0), ("rho", 1.0), ("positions", 0)])
def test_options_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ExportError, match=f"--{name}: got {value}"):
        DemandOptions(**{name: value})


def test_positions_are_spread_over_the_continuation() -> None:
    assert WrittenText(ids=(0,) * 2000, given=90).positions(3).tolist() == [256, 1127, 1999]
    assert WrittenText(ids=(0,) * 2000, given=300).positions(2).tolist() == [300, 1999]
    assert WrittenText(ids=(0,) * 600, given=5).positions(1).tolist() == [200]
    assert WrittenText(ids=(0,) * 30, given=5).positions(64).tolist() == list(range(10, 30))
