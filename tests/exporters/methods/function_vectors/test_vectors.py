"""Vectors, steering in PyTorch and indirect effects: reference values in float64, invariants and refusals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from enginewright.exporters.methods.function_vectors import steering_vectors
from enginewright.exporters.methods.function_vectors.aie import indirect_effects
from enginewright.exporters.methods.function_vectors.attention_layers import attention_layers, last_logits
from enginewright.exporters.methods.function_vectors.extract import best_layer
from enginewright.exporters.methods.function_vectors.measure import target_hits
from enginewright.exporters.methods.function_vectors.prompts import TokenPrompt
from enginewright.exporters.methods.function_vectors.vectors import head_means, head_outputs, steered
from enginewright.runtime.errors import ExportError
from tests.support.exporters.families import FAMILIES, make_model
from tests.support.exporters.sine_llama import PROMPTS, TARGET, ZERO_SHOT, in_float64, sine_llama

DIGITS = 6e-9  # the reference values have 8 digits after the point
HEADS = [(0, 3), (0, 2), (1, 1)]


@pytest.fixture
def exact() -> Iterator[LlamaForCausalLM]:
    """The model of the reference values, in float64."""
    model = sine_llama()
    with in_float64(model):
        yield model


def close(got: torch.Tensor, expected: object, atol: float = DIGITS) -> None:
    torch.testing.assert_close(got.detach(), torch.as_tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def zero_shot(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return last_logits(model, torch.tensor([ZERO_SHOT]))[0, :4]


def test_reference_values(exact: LlamaForCausalLM) -> None:
    means = head_means(exact, PROMPTS)
    at_heads, whole = steering_vectors(exact, HEADS, means)
    assert list(at_heads) == [0, 1]
    close(at_heads[0][:3], [3.22857641, 0.10088940, -3.34418912])
    close(at_heads[1][:3], [0.00854283, -0.01115196, 0.01299935])
    close(whole[:3], [3.23711924, 0.08973744, -3.33118977])
    close(zero_shot(exact), [-0.42857545, 0.35763679, 0.12980712, -0.61440436])
    with steered(exact, heads=at_heads):
        close(zero_shot(exact), [-0.75466593, 0.67440972, -0.19854719, -0.31161231])
    with steered(exact, stream={0: whole}):
        close(zero_shot(exact), [-0.64459802, 0.57428889, -0.13686052, -0.32790306])
    effects = [[-0.00165904, -0.00071641, 0.01167820, 0.02282452], [0.00003799, -0.00010223, 0.00021906, -0.00016335]]
    close(indirect_effects(exact, ZERO_SHOT, TARGET, means), effects)


def test_the_bias_is_the_same_as_the_means_added_to_the_heads(exact: LlamaForCausalLM) -> None:
    means = head_means(exact, PROMPTS)
    at_heads, _ = steering_vectors(exact, HEADS, means)
    with steered(exact, heads=at_heads):
        expected = zero_shot(exact)

    def hook_of(layer: int) -> object:
        def add(_: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            z = inputs[0].clone()
            for _, head in (each for each in HEADS if each[0] == layer):
                z[0, -1, 4 * head : 4 * head + 4] += means[layer, head]
            return (z,)

        return attention_layers(exact)[layer].projection.register_forward_pre_hook(add)

    hooks = [hook_of(layer) for layer in range(2)]
    close(zero_shot(exact), expected, 1e-14)
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]


def test_nothing_changes_what_is_nothing(exact: LlamaForCausalLM) -> None:
    plain = zero_shot(exact)
    means = head_means(exact, PROMPTS)
    every = [(layer, head) for layer in range(2) for head in range(4)]
    for vectors, scale in (
        (steering_vectors(exact, HEADS, means), 0.0),
        (steering_vectors(exact, every, 0 * means), 1.0),
    ):
        with steered(exact, heads=vectors[0], stream={1: vectors[1]}, scale=scale):
            assert torch.equal(zero_shot(exact), plain)


def test_a_heads_own_output_has_no_effect(exact: LlamaForCausalLM) -> None:
    effects = indirect_effects(exact, ZERO_SHOT, TARGET, head_outputs(exact, ZERO_SHOT))
    assert float(effects.abs().max()) < 1e-15


@pytest.mark.parametrize("family", list(FAMILIES))
def test_effects_on_the_cache_are_those_of_whole_passes(family: str) -> None:
    """Over a prompt longer than the window, and over one of a single token, which has no cache."""
    model = make_model(family, gain=2.0)
    means = head_means(model, [[3, 4, 5, 6], [3, 8, 9]])
    for ids in ([3 + i % 11 for i in range(27)], [5]):
        expected = effects_by_whole_passes(model, ids, 7, means)
        largest = float(expected.abs().max())
        run = list[int]()
        first = attention_layers(model)[0].projection
        hook = first.register_forward_pre_hook(lambda _, inputs, run=run: run.append(inputs[0][..., 0].numel()))  # type: ignore[misc]
        close(indirect_effects(model, ids, 7, means), expected, 1e-3 * largest)
        hook.remove()
        assert largest > 1e-5
        assert sum(run) < 4 * len(ids) + means.shape[0] * means.shape[1], "tokens before the last one run once"


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_best_layer_is_that_of_whole_passes(family: str, scale: float) -> None:
    """Of prompts of three lengths, whose targets are those that one layer makes likely."""
    model = make_model(family, gain=2.0)
    whole = scale * torch.randn(64, generator=torch.Generator().manual_seed(0))
    ids = [tuple(3 + (7 * i + row) % 200 for i in range(1 + row % 3)) for row in range(40)]
    for layer in (0, 1):
        with steered(model, stream={layer: whole}), torch.no_grad():
            targets = [int(last_logits(model, torch.tensor([each])).argmax()) for each in ids]
        prompts = [TokenPrompt(ids=each, target=own, keys=()) for each, own in zip(ids, targets, strict=True)]
        found = []
        for tried in (0, 1):
            with steered(model, stream={tried: whole}):
                found.append(target_hits(model, prompts))
        assert best_layer(model, whole, prompts) == layer == found.index(max(found))


def effects_by_whole_passes(model: PreTrainedModel, ids: list[int], target: int, means: torch.Tensor) -> torch.Tensor:
    row, effects = torch.tensor([ids]), torch.zeros(means.shape[:2])

    def probability() -> torch.Tensor:
        with torch.no_grad():
            return last_logits(model, row).softmax(-1)[0, target]

    plain = probability()
    for layer in attention_layers(model):
        for head in range(layer.heads):

            def replace(_: object, inputs: tuple[torch.Tensor], index: int = layer.index, head: int = head) -> object:
                inputs[0].unflatten(-1, (means.shape[1], -1))[0, -1, head] = means[index, head]
                return inputs

            hook = layer.projection.register_forward_pre_hook(replace)
            effects[layer.index, head] = probability() - plain
            hook.remove()
    return effects


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_adds_its_means(family: str) -> None:
    """Added to o_proj's output, in families whose head size is not d / H and that have biases there."""
    model = make_model(family, gain=2.0)
    prompts = [[3, 4, 5, 6], [3, 8, 9]]
    means = head_means(model, prompts)
    layers = attention_layers(model)
    assert means.shape == (2, model.config.num_attention_heads, layers[0].head_dim)
    at_heads, whole = steering_vectors(model, [(1, 0), (0, 1), (1, 3)], means)
    weight, size = layers[1].projection.weight, layers[1].head_dim
    expected = sum(weight[:, h * size : (h + 1) * size] @ means[1, h] for h in (0, 3))
    close(at_heads[1], expected.detach(), 1e-5)  # type: ignore[union-attr]
    close(whole, at_heads[0] + at_heads[1], 1e-5)
    row = torch.tensor([[3, 8, 9, 11]])
    with torch.no_grad():
        plain = model(input_ids=row, use_cache=False).logits[0]
        with steered(model, heads=at_heads, stream={0: whole}):
            moved = model(input_ids=row, use_cache=False).logits[0]
        with steered(model, heads=at_heads, first=0):
            all_moved = model(input_ids=row, use_cache=False).logits[0]
    close(moved[:-1], plain[:-1], 1e-5)
    assert float((moved[-1] - plain[-1]).abs().max()) > 1e-4
    assert float((all_moved[0] - plain[0]).abs().max()) > 1e-4


def test_bad_input() -> None:
    model = make_model("qwen2")
    means = torch.zeros(2, 4, 16)
    for heads, given, message in (
        ([(0, 0)], torch.zeros(2, 4, 15), r"means: got the shape \[2, 4, 15\], expected \[2, 4, 16\]"),
        ([(0, 0)], means + float("nan"), "means: got values that are not finite"),
        ([], means, r"heads: got \[\], expected one or more"),
        ([(0, 0), (0, 0)], means, "each once"),
        ([(2, 0)], means, r"heads: got \(2, 0\), expected layers below 2, heads below 4"),
        ([(0, 4)], means, r"heads: got \(0, 4\)"),
    ):
        with pytest.raises(ExportError, match=message):
            steering_vectors(model, heads, given)
    with pytest.raises(ExportError, match="head_means: got no prompt"):
        head_means(model, [])
    with pytest.raises(ExportError, match="indirect_effects: means: got the shape"):
        indirect_effects(model, [3, 4], 1, torch.zeros(2, 4, 15))
