"""Tests of `tune duo`: the gates that it writes, what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.exporters.methods.evict.head_gates import check_head_gates, open_head_gates
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.cli import main
from tests.support.paths import ROOT

MODEL = ROOT / "examples/tiny-reasoner"
Capture = pytest.CaptureFixture[str]
Tune = Callable[..., int]


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """Runs the command in process and writes heads.json into the test's folder."""

    def run(*options: str) -> int:
        command = ["tune", "duo", "--model", str(MODEL), "--output", str(tmp_path / "heads.json")]
        return main([*command, "--threads", "1", *options])

    return run


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Texts as a model could have written them."""
    rows = [{"prompt": "Count up.", "completion": " ".join(map(str, range(60)))}, {"text": "a = 1; b = a + 2; " * 6}]
    path = tmp_path / "written.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_the_gates_of_given_texts(tune: Tune, written: Path, tmp_path: Path, capsys: Capture) -> None:
    assert tune("--continuations", str(written), "--json") == 0
    shown, path = capsys.readouterr().out, tmp_path / "heads.json"
    found = open_head_gates(path)
    check_head_gates(path, found, sha256=hash_of(open_checkpoint(str(MODEL))), layers=4)
    assert json.loads(shown) == json.loads(path.read_text()) and str(tmp_path) not in shown
    assert (found.repeats, found.data, found.texts) == (500, "written.jsonl", 2)
    assert [len(layer or ()) for layer in found.gates] == [2] * 4
    assert tune("--continuations", str(written), "--repeats", "50") == 0
    table = capsys.readouterr().out
    assert "2 texts of " in table and "repeated 50 times" in table
    gates = open_head_gates(path).gates
    assert gates != found.gates and f"layer 3: {gates[3][0]:.3f} {gates[3][1]:.3f}\n" in table  # type: ignore[index]


@pytest.mark.native
@pytest.mark.slow
def test_the_model_continues_generated_problems(tune: Tune, tmp_path: Path) -> None:
    """A head of the first layer looks up the token before, so that its gate is the lowest."""
    assert tune("--data", "reasoning", "--prompts", "2", "--length", "700") == 0
    found = open_head_gates(tmp_path / "heads.json")
    assert (found.texts, found.data) == (2, "reasoning") and found.tokens > 2 * 200
    first = found.gates[0]
    assert first is not None and first[0] < 0.05
    assert first[0] == min(gate for layer in found.gates for gate in layer or ())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--continuations", "missing.jsonl"], "--continuations missing.jsonl: got no file"),
        (["--data", "reasoning", "--repeats", "1"], "--repeats: got 1, expected 2 or more"),
        (["--data", "reasoning", "--repeats", "999999"], "--repeats: got 999999, expected at most"),
        (["--data", "reasoning", "--threads", "0"], "--threads: got 0"),
        (["--data", "reasoning", "--prompts", "0"], "--prompts: got 0"),
    ],
)
def test_refusals(tune: Tune, options: list[str], complaint: str, capsys: Capture) -> None:
    assert tune(*options) == 2
    assert complaint in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path, capsys: Capture) -> None:
    assert main(["tune", "duo", "--model", "nothing", "--data", "reasoning", "--output", str(tmp_path)]) == 2
    assert "got a folder, expected a file, such as" in capsys.readouterr().err
