"""Head scores: reference values in float64, and what has to hold in every family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from enginewright.exporters.features.depth_attention.reference import add_depth_attention
from enginewright.exporters.features.depth_attention.rule import DepthAttention
from enginewright.exporters.methods.function_vectors import head_scores, rules, scores, top_heads
from enginewright.exporters.methods.function_vectors.attention_layers import attention_layers, last_logits
from enginewright.exporters.methods.function_vectors.rules import relevance_rules
from enginewright.exporters.methods.function_vectors.scores import observing, relevance_of_keys
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.families import FAMILIES, WINDOW, make_model
from tests.support.exporters.sine_llama import KEYS, PROMPT, TARGET, in_float64, sine_llama

DIGITS = 6e-9  # the reference values have 8 digits after the point
EXPECTED = [[0.00000000, 0.00000003, 0.02963025, 0.19832727], [0.00073145, 0.00343160, 0.00057414, 0.00307433]]
PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
MORE = {"gpt_neox": {"num_key_value_heads": 4}, "olmo2": {}, "granite": {}, "cohere": {}}


@pytest.fixture
def exact() -> Iterator[LlamaForCausalLM]:
    """The model of the reference values, in float64."""
    model = sine_llama()
    with in_float64(model):
        yield model


def close(got: torch.Tensor, expected: Any, atol: float = DIGITS) -> None:
    torch.testing.assert_close(got.detach(), torch.as_tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def test_reference_values(exact: LlamaForCausalLM) -> None:
    close(last_logits(exact, torch.tensor([PROMPT]))[0, :4], [-0.61800925, 0.54710801, -0.24526956, -0.08279185])
    got = head_scores(exact, PROMPT, TARGET, KEYS)
    close(got, EXPECTED)
    assert top_heads(got, 3) == [(0, 3), (0, 2), (1, 1)]


def test_keys_in_any_order_and_twice_count_once(exact: LlamaForCausalLM) -> None:
    close(head_scores(exact, torch.tensor(PROMPT), TARGET, (4, 1, 2, 4)), EXPECTED)


def test_maps_are_not_needed(exact: LlamaForCausalLM) -> None:
    row = torch.tensor([PROMPT])
    close(relevance_of_keys(exact, row, TARGET), relevance_of_keys(exact, row, TARGET, by_maps=True), 1e-15)


def test_relevance_of_a_head_is_half_of_its_output_times_the_gradient(exact: LlamaForCausalLM) -> None:
    with relevance_rules(exact), observing(exact, keeps_maps=False) as seen:
        grads = torch.autograd.grad(
            last_logits(exact, torch.tensor([PROMPT]))[0, TARGET], [each.output for each in seen]
        )
    halves = torch.stack([(each.output * grad)[0, -1].sum(-1) / 2 for each, grad in zip(seen, grads, strict=True)])
    close(relevance_of_keys(exact, torch.tensor([PROMPT]), TARGET).sum(-1), halves, 1e-14)


def test_relevance_is_conserved_where_attention_is_a_constant(
    exact: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the maps as constants, A . V is no product of two computed values, and nothing leaks at the softmax."""
    constants = {F.softmax: rules._constant, torch.softmax: rules._constant, torch.Tensor.softmax: rules._constant}
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, **constants})
    kept: list[torch.Tensor] = []
    with relevance_rules(exact):
        hook = exact.model.embed_tokens.register_forward_hook(lambda *each: kept.append(each[2]))
        logit = last_logits(exact, torch.tensor([PROMPT]))[0, TARGET]
        hook.remove()
        (grad,) = torch.autograd.grad(logit, kept)
    close((kept[0] * grad).sum(), -0.02652268)
    close(logit, -0.02652268)


def test_scaling_queries_keys_and_values_gives_twice_the_relevance(
    exact: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule of LXT: a quarter of the gradient to q and k each, half of it to v, and all of it to the maps."""

    def scaled(x: torch.Tensor, share: float) -> torch.Tensor:
        return x * share + (x * (1 - share)).detach()

    def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **more: Any) -> Any:
        return eager_attention_forward(module, scaled(q, 0.25), scaled(k, 0.25), scaled(v, 0.5), mask, **more)

    expected = relevance_of_keys(exact, torch.tensor([PROMPT]), TARGET)
    monkeypatch.setattr(rules, "RULES", {func: rule for func, rule in rules.RULES.items() if func not in PRODUCTS})
    monkeypatch.setattr(scores, "_own_attention", lambda name: attend)
    got = relevance_of_keys(exact, torch.tensor([PROMPT]), TARGET, by_maps=True)
    close(got, 2 * expected, 1e-14)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_every_family(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits stay, both ways agree, sums are right, and the model is left as it was."""
    monkeypatch.setitem(FAMILIES, family, {**MORE, **FAMILIES}[family])
    model = make_model(family, gain=4.0, attn_implementation="eager")
    row = torch.arange(5, 18)[None]
    with torch.no_grad():
        before = last_logits(model, row)
    with relevance_rules(model):
        during = last_logits(model, row).detach()
    close(during, before, 1e-6 * float(before.abs().max()))
    found, maps = (relevance_of_keys(model, row, 7, by_maps=by_maps) for by_maps in (False, True))
    assert found.shape == (2, model.config.num_attention_heads, 13)
    close(found, maps, 1e-5 * float(maps.abs().max()))
    assert float(found.abs().max()) > 0
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(last_logits(model, row), before)


def test_other_attention_implementations_and_types() -> None:
    """A model that was loaded with sdpa gives the same as one with eager attention; one of bfloat16 gives float32."""
    eager = make_model("qwen3", gain=4.0, attn_implementation="eager")
    expected = head_scores(eager, range(3, 16), 7, [2, 3])
    sdpa = make_model("qwen3", gain=4.0, attn_implementation="sdpa")
    close(head_scores(sdpa, range(3, 16), 7, [2, 3]), expected, 1e-6)
    assert sdpa.config._attn_implementation == "sdpa"
    coarse = head_scores(sdpa.bfloat16(), range(3, 16), 7, [2, 3])
    assert coarse.dtype == torch.float32
    close(coarse, expected, 0.1 * float(expected.max()))


def test_dropout_is_off_and_training_goes_on() -> None:
    model = make_model("llama", attention_dropout=0.5)
    expected = head_scores(model, range(3, 9), 7, [2])
    model.train()
    close(head_scores(model, range(3, 9), 7, [2]), expected, 0)
    assert all(module.training for module in model.modules())


def test_a_model_that_mixes_values_over_depth() -> None:
    """Its values enter attention mixed, so that the maps' own gradient is taken."""
    model = make_model("qwen3", gain=4.0, attn_implementation="eager")
    plain = head_scores(model, range(3, 16), 7, [2, 3])
    add_depth_attention(model, DepthAttention(stride=1, recent=1, layers=2))
    mixed = head_scores(model, range(3, 16), 7, [2, 3])
    assert torch.isfinite(mixed).all() and not torch.allclose(mixed, plain)


def test_heads_that_do_not_see_the_keys_score_zero() -> None:
    model = make_model("mistral", gain=4.0)
    ids = list(range(3, 3 + WINDOW + 10))
    assert (head_scores(model, ids, 7, [0, 3, 9]) == 0).all()
    assert (head_scores(model, ids, 7, [len(ids) - 2]) > 0).any()


def test_top_heads_takes_the_first_of_equals() -> None:
    ties = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert top_heads(ties, 1) == [(0, 1)]
    assert top_heads(ties, 4) == [(0, 1), (1, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("ids", "target", "keys", "message"),
    [
        ([], 1, [0], r"keys: got \[0\] for a prompt of 0 tokens"),
        ([3, 4], 1, [], r"keys: got \[\] for a prompt of 2 tokens, expected positions in it"),
        ([3, 4], 1, [2], r"keys: got \[2\]"),
        ([3, 4], 1, [-1], r"keys: got \[-1\]"),
        ([3, 4], 250, [0], "target: got 250, expected a token from 0 to 249"),
        ([3, 4], -1, [0], "target: got -1"),
    ],
)
def test_bad_prompts(ids: Sequence[int], target: int, keys: Sequence[int], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        head_scores(make_model("llama"), ids, target, keys)


def test_bad_scores() -> None:
    for count in (0, 5):
        with pytest.raises(ExportError, match=f"count: got {count}, expected 1 to 4"):
            top_heads(torch.zeros(2, 2), count)
    with pytest.raises(ExportError, match="not finite"):
        top_heads(torch.tensor([[1.0, float("nan")]]), 1)


def test_a_model_without_such_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: PreTrainedModel = make_model("llama")
    model.model.layers[1].self_attn.o_proj = torch.nn.Identity()
    with pytest.raises(UnsupportedError, match="llama: function vectors: got 1 blocks"):
        attention_layers(model)


def test_attention_without_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_own_attention", lambda name: ALL_ATTENTION_FUNCTIONS["sdpa"])
    with pytest.raises(
        UnsupportedError, match=r"LlamaAttention without weights|calls scaled_dot_product_attention itself"
    ):
        head_scores(make_model("llama"), [3, 4], 1, [0])
