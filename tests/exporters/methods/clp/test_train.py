"""Tests of `tune clp`: training on a frozen backbone, resuming it, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from enginewright.exporters.methods.clp import train
from enginewright.exporters.methods.clp.backbone_states import TokenSequence, compute_states
from enginewright.exporters.methods.clp.head_set import WEIGHTS, read_head_set
from enginewright.exporters.methods.clp.heads import classifier_loss
from enginewright.exporters.methods.clp.train import Options, fit_classifier, tune
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.unfinished_run import UNFINISHED
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.cli import main
from enginewright.runtime.errors import ExportError
from tests.exporters.source.formats.gguf.test_tokenizer import of_bytes
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.exporters.gguf_files import make_model, write_gguf
from tests.support.paths import ROOT

FAST = {"epochs": 6, "rate": 5e-3, "classifier_epochs": 4}


def cycles(count: int) -> list[TokenSequence]:
    """Texts that go round in a circle of tokens, so that the token after the next one is easy to predict."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, 40, count), rng.integers(12, 40, count)
    return [
        TokenSequence(ids=tuple(10 + (start + i) % 40 for i in range(length)), given=int(start) % 4)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]


def tensors(root: Path) -> dict[str, np.ndarray]:
    """The trained tensors."""
    found: dict[str, np.ndarray] = load_file(root / WEIGHTS)
    return found


def test_states_are_what_the_output_projection_reads(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint("qwen2"), dtype=torch.float32).eval()
    texts = [TokenSequence(ids=(5, 6, 7, 8), given=2), TokenSequence(ids=(9, 10, 11, 12, 13, 14))]
    found = compute_states(model, texts, tmp_path)
    assert found.bounds.tolist() == [0, 3, 9]
    with torch.no_grad():
        for i, text in enumerate(texts):
            ids = torch.tensor([text.ids])
            own = slice(found.bounds[i], found.bounds[i + 1])
            states = model.model(input_ids=ids).last_hidden_state[0, text.first :]
            np.testing.assert_allclose(found.states[own], states, atol=1e-5)
            assert found.best[own].tolist() == model(input_ids=ids).logits[0, text.first :].argmax(-1).tolist()


def test_heads_learn_what_can_be_told(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    report = tune(str(checkpoint("qwen2")), cycles(120), tmp_path / "heads", Options(**FAST))
    assert min(report.accuracy) > 0.9, report
    assert report.classifier_loss < report.prior_loss + 0.05
    heads = read_head_set(tmp_path / "heads")
    assert (heads.shape.k, heads.shape.classes, heads.shape.head_hidden) == (3, 3, 32)
    assert heads.training["label_source"] == "data" and heads.training["texts"] == 120
    assert json.loads((tmp_path / "heads/report.json").read_text())["positions"] == report.positions
    assert not (tmp_path / "heads" / UNFINISHED).exists()


def test_labels_by_the_backbone_are_about_its_own_choices(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """A random backbone does not go round in the circle, so no head is ever right in its eyes."""
    options = Options(label_source="backbone", **FAST)
    report = tune(str(checkpoint("qwen2")), cycles(60), tmp_path / "heads", options)
    assert report.longest < 1.2 and report.thresholds[0].emitted < 1.2


@pytest.mark.parametrize("stop", ["states", "heads"])
def test_a_run_goes_on_where_it_was_stopped(
    stop: str, checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts, options = str(checkpoint("qwen2")), cycles(40), Options(**FAST)
    tune(model, texts, tmp_path / "whole", options)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    module, name = {"states": (train.compute_states.__globals__, "_run"), "heads": (vars(train), "_step")}[stop]
    original, calls = module[name], 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setitem(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(model, texts, tmp_path / "parts", options)
    with pytest.raises(ExportError, match="holds an unfinished run of another model, data or options; remove it"):
        tune(model, texts, tmp_path / "parts", Options(**{**FAST, "seed": 1}))
    remaining: list[int] = []

    def counted(*arguments: Any) -> Any:
        remaining.append(1)
        return original(*arguments)

    monkeypatch.setitem(module, name, counted)
    tune(model, texts, tmp_path / "parts", options)
    assert len(remaining) == {"states": 5 - 3, "heads": 24 - 3}[stop]
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    for tensor in whole:
        np.testing.assert_array_equal(parts[tensor], whole[tensor])


def test_the_classifier_does_not_lose_to_the_frequencies() -> None:
    torch.manual_seed(0)
    states, labels = (
        torch.randn(3000, 8),
        torch.from_numpy(np.random.default_rng(0).choice(3, 3000, p=[0.8, 0.15, 0.05])),
    )
    classifier = torch.nn.Linear(8, 3)
    fit_classifier(classifier, states, labels, Options())
    share = torch.bincount(labels) / len(labels)
    assert classifier_loss(classifier, states, labels) < -(share * share.log()).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "--k: got 1, expected 2 to 16"),
        ({"k": 17}, "--k: got 17, expected 2 to 16"),
        ({"label_source": "teacher"}, "--label-source: got 'teacher', expected data or backbone"),
        ({"held_out": 1.0}, "--held-out: got 1.0, expected more than 0 and less than 1"),
        ({"epochs": 0}, "--epochs: got 0, expected 1 or more"),
        ({"rate": float("nan")}, "--rate: got nan, expected more than 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Options(**options)


def test_too_few_texts_and_an_output_that_is_taken(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    model = str(checkpoint("qwen2"))
    with pytest.raises(ExportError, match="--data: got 3 texts, expected 10 or more"):
        tune(model, cycles(3), tmp_path / "heads", Options())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="exists and is not empty; remove it, or choose another --output"):
        tune(model, cycles(30), tmp_path, Options())


@pytest.mark.slow
@pytest.mark.parametrize("data", ["reasoning", "text"])
def test_the_command(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Let the value be 12. " * 400)
    arguments = ["tune", "clp", "--model", str(ROOT / "examples/tiny-reasoner"), "--output", str(tmp_path / "heads")]
    arguments += ["--data", data if data == "reasoning" else str(text), "--samples", "24", "--length", "96"]
    assert main([*arguments, "--epochs", "1", "--threads", "1"]) == 0
    assert "tokens a step with the right length every time" in capsys.readouterr().out
    assert read_head_set(tmp_path / "heads").shape.hidden_size == 256
    assert main([*arguments, "--samples", "0"]) == 2
    assert "--samples: got 0, expected 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_reads_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads are trained on a file's own tokens, and are for its tensors; a file without a vocabulary is refused."""
    metadata = of_bytes()
    size = len(metadata["tokenizer.ggml.tokens"])
    model = make_model("qwen2", vocab_size=size)
    file = write_gguf(model, tmp_path / "m.gguf", metadata=metadata)
    data = tmp_path / "rows.jsonl"
    row = {"prompt": "<tool>Hello", "completion": " the world, 12 of the other worlds<|end|>"}
    data.write_text(f"{json.dumps(row)}\n" * 12)
    arguments = ["tune", "clp", "--data", str(data), "--epochs", "1", "--threads", "1"]
    assert main([*arguments, "--model", str(file), "--output", str(tmp_path / "heads")]) == 0
    heads = read_head_set(tmp_path / "heads")
    assert heads.shape.vocab_size == size and heads.backbone.sha256 == hash_of(open_checkpoint(str(file)))
    bare = write_gguf(model, tmp_path / "bare.gguf")
    capsys.readouterr()
    assert main([*arguments, "--model", str(bare), "--output", str(tmp_path / "none")]) == 2
    assert "got no tokenizer, expected one" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_backbone_gives_the_papers_orderings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Later heads are right less often; a stricter threshold emits less, of which more is right than of all guesses."""
    arguments = ["tune", "clp", "--model", str(ROOT / "examples/tiny-reasoner"), "--data", "reasoning", "--json"]
    arguments += ["--samples", "100", "--rate", "5e-3", "--epochs", "5", "--label-source", "backbone", "--threads", "1"]
    assert main([*arguments, "--output", str(tmp_path / "heads")]) == 0
    report = json.loads(capsys.readouterr().out)
    first, second = report["agreement"]
    assert first > second + 0.02
    emitted, agreement = ([each[name] for each in report["thresholds"]] for name in ("emitted", "agreement"))
    assert emitted == sorted(emitted, reverse=True) and emitted[0] > emitted[2] > 1
    assert agreement[0] > (first + second) / 2
    assert agreement[2] > agreement[0] + 0.02
    assert report["classifier_loss"] < report["prior_loss"]
