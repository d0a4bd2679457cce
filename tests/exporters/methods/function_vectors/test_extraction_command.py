"""`tune function-vector` end to end on a bundled model, its engine next to PyTorch, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginewright.exporters.build import build
from enginewright.exporters.methods.function_vectors import top_heads
from enginewright.exporters.methods.function_vectors.attention_layers import last_logits
from enginewright.exporters.methods.function_vectors.extract import ExtractionOptions, extract, zero_shot
from enginewright.exporters.methods.function_vectors.extraction_command import open_fast_tokenizer
from enginewright.exporters.methods.function_vectors.measure import target_hits, target_ranks
from enginewright.exporters.methods.function_vectors.prompts import TokenPrompt, read_task
from enginewright.exporters.methods.function_vectors.vectors import steered
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime import Sampling, cli, load
from enginewright.runtime.artifact.safetensors_file import read_floats
from enginewright.runtime.errors import ExportError
from tests.support.exporters.families import make_model
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.slow

MODEL = str(EXAMPLES / "tiny-text")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task that the model can do: to answer with a number."""
    path = tmp_path_factory.mktemp("task") / "number.json"
    path.write_text(json.dumps([{"input": str(n), "output": str(n)} for n in range(1, 21)]))
    return path


def tune(task: Path, output: Path, *more: str) -> int:
    return cli.main([
        "tune", "function-vector", "--model", MODEL, "--task", str(task), "--output", str(output), "--threads", "1", *more
    ])  # fmt: skip


@pytest.fixture(scope="module")
def folder(task: Path) -> Path:
    output = task.parent / "number"
    assert tune(task, output, "--shots", "4", "--heads", "4", "--json") == 0
    return output


def test_the_folder(folder: Path) -> None:
    record = json.loads((folder / "task.json").read_text())
    assert record["task"] == "number" and record["model"] == {
        "name": "tiny-text", "sha256": hash_of(open_checkpoint(MODEL))
    }  # fmt: skip
    assert record["heads"] == [list(head) for head in top_heads(torch.tensor(record["scores"]), 4)]
    assert record["counts"]["scored"] > 0 and record["counts"]["meant"] == 16
    assert record["accuracy"]["at heads"] > record["accuracy"]["nothing"]
    tensors = read_floats(folder / "vectors.safetensors", 1 << 20)
    assert set(tensors) == {"fv", *(f"dfv.{layer}" for layer, _ in record["heads"])}
    np.testing.assert_allclose(
        tensors["fv"], sum(v for name, v in tensors.items() if name != "fv"), rtol=1e-5, atol=1e-5
    )


@pytest.mark.native
@pytest.mark.parametrize("at", ["heads", "stream"])
def test_an_engine_hits_what_pytorch_hits(at: str, folder: Path, task: Path, tmp_path: Path) -> None:
    """Item by item, at heads and in the stream."""
    recipe = Recipe(apply=(parse_method(f"steering:at={at},capacity=1"),), kv_bits=32, max_batch=4, max_context=64)
    build(MODEL, tmp_path / "engine", recipe, "onnxruntime")
    pairs = read_task(task, 42)
    prompts = zero_shot(
        open_fast_tokenizer(open_checkpoint(MODEL)), [*pairs.train, *pairs.test], with_instructions=False
    )
    model = load_reference(MODEL, ())
    tensors = read_floats(folder / "vectors.safetensors", 1 << 20)
    layer = json.loads((folder / "task.json").read_text())["layer"]
    given: dict[str, Any] = {
        "heads": {int(name[4:]): torch.tensor(v) for name, v in tensors.items() if name.startswith("dfv.")},
        "stream": {layer: torch.tensor(tensors["fv"])},
    }
    expected = []
    with torch.no_grad(), steered(model, **{at: given[at]}):
        expected = [int(last_logits(model, torch.tensor([prompt.ids])).argmax()) for prompt in prompts]
    with load(tmp_path / "engine", 1) as llm:
        name = llm.load_vector(folder)
        done = llm.generate(
            [list(prompt.ids) for prompt in prompts],
            Sampling(max_tokens=1, ignore_eos=True, temperature=0, vector=name),
        )
    assert [each.token_ids[0] for each in done] == expected


def test_heads_of_several_tasks(folder: Path, task: Path, tmp_path: Path) -> None:
    other = tmp_path / "same.json"
    other.write_text(json.dumps([{"input": str(n), "output": str(2 * n)} for n in range(1, 21)]))
    assert tune(other, tmp_path / "same", "--shots", "4", "--heads", "4", "--layer", "1", "--with", str(folder)) == 0
    record, first = (json.loads((each / "task.json").read_text()) for each in (tmp_path / "same", folder))
    both = torch.tensor([record["scores"], first["scores"]]).mean(0)
    assert record["heads"] == [list(head) for head in top_heads(both, 4)]
    assert record["layer"] == 1 and record["counts"]["tasks"] == 2


def test_instructions(task: Path) -> None:
    """The five best are taken; the model is made to solve the task by a target that it always ranks first."""
    model, tokenizer = load_reference(MODEL, ()), open_fast_tokenizer(open_checkpoint(MODEL))
    pairs = read_task(task, 42)
    with pytest.raises(ExportError, match=r"training pairs that the model solves with the instructions.*--shots 8"):
        extract(
            model,
            tokenizer,
            pairs,
            ExtractionOptions(instructions=("Count the numbers.",), frame=("numbers",), heads=4),
        )
    ranks = target_ranks(model, zero_shot(tokenizer, pairs.train, with_instructions=True))
    assert min(ranks) >= 1
    options = ExtractionOptions(
        instructions=tuple(f"A: {n}\nA: {n}\nNumber" for n in range(6)), frame=("number",), heads=4, least=1
    )
    made = extract(model, tokenizer, pairs, options)
    assert made.counts["of prompts"] <= 25 and made.counts["solved"] >= 1 and len(made.heads) == 4


def test_ranks_and_hits() -> None:
    model = make_model("llama")
    rows = [[3, 4, 5], [6, 7], [8, 9, 10]]
    with torch.no_grad():
        logits = [last_logits(model, torch.tensor([row]))[0] for row in rows]
    targets = [int(each.argsort(descending=True)[place]) for each, place in zip(logits, (0, 3, 0), strict=True)]
    prompts = [TokenPrompt(ids=tuple(row), keys=(0,), target=target) for row, target in zip(rows, targets, strict=True)]
    assert target_ranks(model, prompts) == [1, 4, 1]
    assert target_hits(model, prompts)[0] == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "got both or neither of --instruction and --shots"),
        (("--shots", "4", "--instruction", "x"), "got both or neither"),
        (("--shots", "0"), "--shots: got 0, expected 1 or more"),
        (("--shots", "4", "--heads", "0"), "--heads: got 0"),
        (("--shots", "4", "--heads", "17"), "--heads: got 17, expected at most 16"),
        (("--shots", "4", "--heads", "4", "--layer", "4"), "--layer: got 4, expected a layer from 0 to 3"),
        (("--shots", "4", "--frame", "x"), "--frame: got keywords with --shots"),
        (("--shots", "20", "--heads", "4"), "got 14 pairs to learn from"),
        (("--shots", "4", "--threads", "0"), "--threads: got 0"),
        (("--shots", "4", "--with", "nowhere"), "nowhere/task.json: not found"),
    ],
)
def test_refusals(
    more: tuple[str, ...], message: str, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(task, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken(folder: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(task, folder, "--shots", "4") == 2
    assert "--output" in capsys.readouterr().err
