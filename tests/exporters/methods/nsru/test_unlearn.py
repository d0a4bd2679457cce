"""Tests of the training: gradients, states of the lower blocks, resuming, the adapter that is written, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.methods.lora import Config
from enginewright.exporters.methods.nsru import objective, retained_inputs, token_mean_loss, unlearn_steps
from enginewright.exporters.methods.nsru import unlearn as unlearn_module
from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel, find_projections
from enginewright.exporters.methods.nsru.frozen_linear import FrozenLinear
from enginewright.exporters.methods.nsru.response_tokens import ResponseTokens
from enginewright.exporters.methods.nsru.retained_inputs import observe_inputs
from enginewright.exporters.methods.nsru.unlearn import UnlearnTexts, unlearn
from enginewright.exporters.methods.nsru.unlearn_options import UnlearnOptions
from enginewright.exporters.methods.nsru.unlearn_steps import Unlearning
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.methods.unfinished_run import UNFINISHED
from enginewright.exporters.recipe import Recipe
from enginewright.runtime.errors import ExportError, UnsupportedError
from enginewright.runtime.loader import load
from tests.support.exporters.adapters import make_base_model
from tests.support.exporters.families import make_model
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker
from tests.support.exporters.gguf_files import make_model as make_gguf_model
from tests.support.exporters.gguf_files import write_gguf

FAST = {"steps": 6, "batch": 6, "rate": 1e-2, "warmup": 2, "rank": 3}
FILES = ["adapter_config.json", "adapter_model.safetensors", "report.json", "report.png"]


def texts(count: int, seed: int) -> tuple[ResponseTokens, ...]:
    """Random prompts and answers of different lengths."""
    rng = np.random.default_rng(seed)
    sizes = zip(rng.integers(3, 9, count).tolist(), rng.integers(1, 9, count).tolist(), strict=True)
    return tuple(
        ResponseTokens(ids=tuple(rng.integers(3, 240, p + n).tolist()), prompt=p, query_last=p - 2) for p, n in sizes
    )


TEXTS = UnlearnTexts(undesired=texts(5, 0), safe=texts(5, 1), retain=texts(9, 2), templated=0)


def adapted(model: PreTrainedModel, folder: Path, **options: Any) -> tuple[AdaptedModel, Unlearning]:
    """A model whose last block is to be trained."""
    chosen = UnlearnOptions(**{**FAST, **options})
    projections = find_projections(model, 1, chosen.modules)
    made = AdaptedModel(model, projections)
    folder.mkdir(exist_ok=True)
    inputs = observe_inputs(made, TEXTS.by_kind, folder, chosen, chosen.most)
    made.adapt(unlearn_module._adapters(projections, inputs, chosen.rank or 3, chosen))
    return made, Unlearning(made, TEXTS.by_kind, inputs, chosen, folder)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "mixtral", "helium"])
def test_logits_of_answers_from_kept_states(family: str, tmp_path: Path) -> None:
    """Those of a padded batch equal those of each sequence alone in the plain model, and B = 0 changes nothing."""
    model = make_model(family)
    batch = TEXTS.retain[:4]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([x.ids])).logits[0, x.prompt - 1 : -1] for x in batch]
    made, _ = adapted(model, tmp_path / "work")
    states = made.observe(batch, lambda *_: None)
    with torch.no_grad():
        for own in (made.logits(batch), made.logits(batch, states)):
            for found, plain in zip(own, expected, strict=True):
                torch.testing.assert_close(found, plain, atol=2e-5, rtol=1e-4)
        one = made.logits(batch[:1], states[:1])[0]
    torch.testing.assert_close(one, expected[0], atol=2e-5, rtol=1e-4)


def test_blocks_that_read_more_than_their_input_are_all_run(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block with Depth-Attention reads values of the blocks before it. Others are found by their logits."""
    depth = {"stride": 1, "recent": 0}
    mixed = str(checkpoint("qwen3", num_hidden_layers=3, depth_attention=depth))
    assert not unlearn(mixed, TEXTS, tmp_path / "mixed", UnlearnOptions(**FAST, layers=1))["lower_blocks_once"]
    plain = str(checkpoint("qwen3"))
    assert unlearn(plain, TEXTS, tmp_path / "plain", UnlearnOptions(**FAST, layers=1))["lower_blocks_once"]
    assert not unlearn(plain, TEXTS, tmp_path / "all", UnlearnOptions(**FAST, layers=2))["lower_blocks_once"]
    monkeypatch.setattr(retained_inputs, "_SAME", -1.0)
    report = unlearn(plain, TEXTS, tmp_path / "whole", UnlearnOptions(**FAST, layers=1))
    assert not report["lower_blocks_once"]
    ours, theirs = (load_file(tmp_path / name / FILES[1]) for name in ("plain", "whole"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("wide", [False, True])
def test_products_with_frozen_weights(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginewright.exporters.methods.nsru.frozen_linear._WIDE", 0 if wide else 8192)
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=generator) for shape in ((2, 5, 7), (3, 7), (3,)))
    results = []
    for context in (FrozenLinear(), torch.enable_grad()):
        own = x.clone().requires_grad_()
        with context:
            out = torch.nn.functional.linear(own, w, b)
        out.square().sum().backward()
        results.append((out.detach(), own.grad))
    torch.testing.assert_close(*results)
    trained = w.clone().requires_grad_()
    with FrozenLinear():
        torch.nn.functional.linear(x, trained).sum().backward()
    assert trained.grad is not None


@pytest.mark.parametrize("method", ["nsru", "lora", "gradient-ascent", "graddiff"])
def test_gradients_are_those_of_the_objective(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd through the plain model, with A (I - U U') in the graph and one sequence at a time."""
    monkeypatch.setattr(unlearn_steps, "LARGEST_NORM", 1e9)
    monkeypatch.setattr(retained_inputs, "TOKENS", 25)  # several batches of different lengths
    made, run = adapted(make_model("llama", gain=4.0), tmp_path / "work", method=method, retain_weight=0.7)
    for number, each in enumerate(made.adapters.values()):
        each.b.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    start = {name: (each.a.clone(), each.b.detach().clone()) for name, each in made.adapters.items()}
    drawn = run._draw(0)
    found = run.step()
    plain, own = make_model("llama", gain=4.0), {}
    for name, (a, b) in start.items():
        own[name] = a.requires_grad_(), b.requires_grad_()
        u = made.adapters[name].basis

        def hook(_: Any, inputs: Any, out: torch.Tensor, a: Any = a, b: Any = b, u: Any = u) -> torch.Tensor:
            return out + 2 * inputs[0] @ (a @ (torch.eye(len(u)) - u @ u.T)).T @ b.T

        plain.get_submodule(name).register_forward_hook(hook)
    everything = [*TEXTS.undesired, *TEXTS.safe, *TEXTS.retain]
    means = {"safe": torch.zeros(()), "undesired": torch.zeros(()), "retain": torch.zeros(())}
    for each in drawn:
        text = everything[each.number]
        ids = torch.tensor(text.ids)
        mask = torch.arange(1, len(ids)) >= text.prompt
        means[each.kind] = (
            means[each.kind] + token_mean_loss(plain(input_ids=ids[None]).logits[0, :-1], ids[1:], mask) / 3
        )
    loss = objective(means["safe"], means["undesired"], means["retain"], 1.0, 0.0 if "retain" not in found else 0.7)
    loss.backward()  # type: ignore[union-attr]
    assert found["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert {kind for kind in means if kind in found} == {each.kind for each in drawn}
    for name, (a, b) in own.items():
        torch.testing.assert_close(made.adapters[name].a.grad, a.grad, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(made.adapters[name].b.grad, b.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("at", ["prompt-last", "query-last", "sequence-last", "mean", "all-tokens"])
def test_samples_are_inputs_at_the_place(at: str, tmp_path: Path) -> None:
    model = make_model("llama")
    _, run = adapted(model, tmp_path / "work", at=at)
    name = "model.layers.1.self_attn.q_proj"
    rows = []
    for each in TEXTS.retain:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([each.ids]), output_hidden_states=True).hidden_states[1]
            inputs = model.model.layers[1].input_layernorm(states)[0]
        place = {"prompt-last": each.prompt - 1, "query-last": each.query_last, "sequence-last": len(each.ids) - 1}
        chosen = inputs[place[at]][None] if at in place else inputs.mean(0)[None] if at == "mean" else inputs
        rows.append(chosen)
    samples = torch.cat(rows)
    found = run._inputs.inputs[name]
    assert found.count == len(samples)
    torch.testing.assert_close(found.retained.T @ found.retained, samples.T @ samples, atol=1e-3, rtol=1e-3)


def test_the_subspace_is_left_alone_in_every_step(tmp_path: Path) -> None:
    made, run = adapted(make_model("llama"), tmp_path / "work")
    run.run()
    for _ in range(4):
        run.step()
        for each in made.adapters.values():
            each.refresh()
            change = each.update()
            assert each.basis.shape[1] and float(change.norm())
            assert float((change @ each.basis.double()).norm()) <= 1e-5 * float(change.norm())


def test_npo_starts_at_the_frozen_models_likelihood(tmp_path: Path) -> None:
    _, run = adapted(make_model("llama"), tmp_path / "work", method="npo", retain_weight=0.0)
    found = run.step()
    assert found["loss"] == pytest.approx(2 / 0.1 * np.log(2), rel=1e-5) and set(found) == {"undesired", "loss", "norm"}


def test_a_cap_stops_the_ascent(tmp_path: Path) -> None:
    made, run = adapted(make_model("llama"), tmp_path / "work", method="gradient-ascent", forget_cap=0.5)
    assert run.step()["loss"] == pytest.approx(-0.5)  # a random model is above it from the start
    assert not any(float(each.b.detach().abs().max()) for each in made.adapters.values())


def test_no_energy_is_plain_lora(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """Bit for bit; a subspace makes a difference."""
    for name, options in {"none": {"energy": 0.0}, "lora": {"method": "lora"}, "some": {}}.items():
        unlearn(str(checkpoint("llama")), TEXTS, tmp_path / name, UnlearnOptions(**FAST, **options))
    weights = [(tmp_path / name / FILES[1]).read_bytes() for name in ("none", "lora", "some")]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("stop", ["inputs", "step", "update"])
def test_a_run_that_broke_off_gives_equal_bytes(
    stop: str, checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it broke while tensors changed one after another: then the last save counts."""
    model, options = str(checkpoint("llama")), UnlearnOptions(**FAST, layers=1)
    unlearn(model, TEXTS, tmp_path / "whole", options)
    owner, name, left = {
        "inputs": (AdaptedModel, "observe", 0),
        "step": (Unlearning, "_backward", 4),
        "update": (torch.optim.AdamW, "step", 4),
    }[stop]
    original: Any = getattr(owner, name)

    def broken(*given: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(*given, **named)

    with monkeypatch.context() as patch:
        if stop == "update":
            patch.setattr(unlearn_steps, "SAVE_SECONDS", 0.0)
        patch.setattr(owner, name, broken)
        with pytest.raises(KeyboardInterrupt):
            unlearn(model, TEXTS, tmp_path / "parts", options)
    folder = tmp_path / "parts" / UNFINISHED
    if stop != "inputs":
        assert torch.load(folder / unlearn_steps.STATE, weights_only=True)["done"] == 4
    with pytest.raises(ExportError, match="holds an unfinished run of another model, data or options; remove it"):
        unlearn(model, TEXTS, tmp_path / "parts", UnlearnOptions(**FAST, layers=2))
    unlearn(model, TEXTS, tmp_path / "parts", options)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == FILES
    for file in FILES:
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


# ---- the adapter that is written -----------------------------------------------------------


@pytest.fixture(scope="module")
def trained(checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An adapter of a model with norms of queries and keys, and its report."""
    root = tmp_path_factory.mktemp("nsru") / "adapter"
    return root, unlearn(str(checkpoint("qwen3")), TEXTS, root, UnlearnOptions(**{**FAST, "rate": 0.05}))


def with_peft(base: Path, adapter: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().eval()


def test_peft_merges_it_without_a_change_in_the_subspace(
    trained: tuple[Path, dict[str, Any]], checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    root, report = trained
    base = AutoModelForCausalLM.from_pretrained(checkpoint("qwen3"), dtype=torch.float32)
    merged = with_peft(checkpoint("qwen3"), root)
    made = AdaptedModel(base, find_projections(base, 1, "qkvo"))
    inputs = observe_inputs(made, TEXTS.by_kind, tmp_path, UnlearnOptions(), None).inputs
    for each in report["modules"]:
        change = (merged.get_submodule(each["name"]).weight - base.get_submodule(each["name"]).weight).detach().double()
        basis = inputs[retained_inputs.reader_of(each["name"], list(made.projections))].basis.double()
        assert basis.shape[1] == each["k"] > 0
        assert float((change @ basis).norm()) <= 1e-5 * float(change.norm())
        assert each["leak"] <= 1e-5 and each["update"] == pytest.approx(float(change.norm()), rel=1e-4)


def test_merged_weights_give_what_the_adapters_gave(tmp_path: Path, checkpoint: CheckpointMaker) -> None:
    options = UnlearnOptions(**{**FAST, "rate": 0.05}, layers=1)
    unlearn(str(checkpoint("llama")), TEXTS, tmp_path / "out", options)
    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32, attn_implementation="eager")
    made, run = adapted(model.eval(), tmp_path / "again", rate=0.05)
    run.run()
    merged = with_peft(checkpoint("llama"), tmp_path / "out")
    with torch.no_grad():
        for text, own in zip(TEXTS.safe, made.logits(TEXTS.safe), strict=True):
            expected = merged(input_ids=torch.tensor([text.ids])).logits[0, text.prompt - 1 : -1]
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.native
@pytest.mark.slow
def test_an_engine_gives_pefts_logits(
    trained: tuple[Path, dict[str, Any]], checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    root, _ = engine(checkpoint("qwen3"), Recipe(kv_bits=32, apply=(Applied("lora", Config(path=str(trained[0]))),)))
    tokens = [3 + 7 * i % 240 for i in range(30)]
    with torch.no_grad():
        expected = with_peft(checkpoint("qwen3"), trained[0])(input_ids=torch.tensor([tokens])).logits[0].numpy()
        before = AutoModelForCausalLM.from_pretrained(checkpoint("qwen3"))(input_ids=torch.tensor([tokens])).logits[0]
    with load(root, threads=1) as llm:
        np.testing.assert_allclose(llm.logits(tokens), expected, atol=2e-5)
    assert np.abs(expected - before.numpy()).max() > 1e-3


def test_the_report(trained: tuple[Path, dict[str, Any]]) -> None:
    root, report = trained
    assert json.loads((root / "report.json").read_text()) == report
    assert (root / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (report["forget"], report["retain"], report["options"]["layers"]) == (5, 9, 1)
    assert {name: len(values) for name, values in report["curves"].items()} == dict.fromkeys(
        ("safe", "undesired", "retain", "loss", "norm"), 6
    )
    assert [each["name"].rpartition(".")[2] for each in report["modules"]] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    for each in report["modules"]:
        assert 0 < each["residual_retain"] < 1 and 0 < each["residual_forget"] <= 1 and 0 < each["mean_share"] < 1
        assert each["samples"] == 9 and each["change_retain"] > 0 and each["change_forget"] > 0


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["undesired", "retain"])
def test_nothing_to_forget_or_to_retain(kind: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    own = {**TEXTS.by_kind, kind: ()}
    with pytest.raises(ExportError, match=r"--(forget|retain): got no lines, expected one or more"):
        unlearn(str(checkpoint("llama")), UnlearnTexts(**own, templated=0), tmp_path / "out", UnlearnOptions())
    assert not (tmp_path / "out").exists()


def test_losses_that_are_not_finite(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps before it are kept, and nothing is written."""
    original = unlearn_steps.answer_loss
    left = 30

    def failing(*given: Any) -> torch.Tensor:
        nonlocal left
        left -= 1
        return original(*given) * (float("nan") if left < 0 else 1)

    monkeypatch.setattr(unlearn_steps, "answer_loss", failing)
    with pytest.raises(
        ExportError, match=r"step 4: the loss of the \w+ answers is nan, .* the 3 steps before it are kept"
    ):
        unlearn(str(checkpoint("llama")), TEXTS, tmp_path / "out", UnlearnOptions(**FAST))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [UNFINISHED]
    state = torch.load(tmp_path / "out" / UNFINISHED / unlearn_steps.STATE, weights_only=True)
    assert state["done"] == 3 and all(bool(x.isfinite().all()) for pair in state["adapters"].values() for x in pair)


@pytest.mark.parametrize(("kind", "is_refused"), [("Q8_0", True), ("F16", False)])
def test_weights_that_are_codes(kind: str, is_refused: bool, tmp_path: Path) -> None:
    """Of the layers that get adapters; others may be."""
    model = make_gguf_model("qwen2")
    kinds = {"attn_q": kind, "ffn_up": "Q8_0"}
    file = write_gguf(model, tmp_path / "m.gguf", kinds=kinds)
    if is_refused:
        with pytest.raises(UnsupportedError, match=r"self_attn.q_proj.weight is quantised, expected numbers"):
            unlearn(str(file), TEXTS, tmp_path / "out", UnlearnOptions(**FAST))
        assert not (tmp_path / "out" / FILES[1]).exists()
    else:
        assert unlearn(str(file), TEXTS, tmp_path / "out", UnlearnOptions(**FAST))["modules"]


@pytest.mark.parametrize("family", ["phi3", "gpt2"])
def test_models_without_the_projections(family: str, tmp_path: Path) -> None:
    make_base_model(family).save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"block 1 has no linear layer q_proj, expected q_proj, k_proj"):
        unlearn(str(tmp_path / "model"), TEXTS, tmp_path / "out", UnlearnOptions(**FAST))


def test_an_output_in_use(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ExportError, match="is not empty; remove it, or choose another --output"):
        unlearn(str(checkpoint("llama")), TEXTS, tmp_path, UnlearnOptions(**FAST))


def test_more_layers_than_there_are(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--layers: got 3, expected at most 2"):
        unlearn(str(checkpoint("llama")), TEXTS, tmp_path / "out", UnlearnOptions(**FAST, layers=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rmu"}, "--method: got rmu, expected nsru, lora"),
        ({"at": "first"}, "--at: got first, expected prompt-last"),
        ({"energy_of": "half"}, "--energy-of: got half, expected capped, total"),
        ({"energy": 1.5}, "--energy: got 1.5, expected 0 to 1"),
        ({"modules": ("q", "q")}, "--modules: got q q, expected some of q, k, v and o"),
        ({"batch": 5}, "--batch: got 5, expected an even number"),
        ({"rank": 0}, "--rank: got 0, expected 1 or more"),
        ({"rate": float("nan")}, "--rate: got nan, expected more than 0"),
        ({"forget_cap": 0.0}, "--forget-cap: got 0.0, expected more than 0"),
        ({"retain_weight": -1.0}, "--retain-weight: got -1.0, expected 0 or more"),
        ({"method": "gradient-ascent", "forget_weight": 0.0}, "got weights of 0 alone"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        UnlearnOptions(**options)
