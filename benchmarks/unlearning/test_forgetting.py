"""Tests of the command `benchmarks.unlearning.forgetting` and of the model that it starts from, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.unlearning import forgetting, taught_model
from benchmarks.unlearning.invented_authors import QUESTIONS, author_questions, split_authors
from benchmarks.unlearning.real_facts import fact_questions
from tests.support.paths import ROOT

MODEL = ROOT / "examples/tiny-text"


def test_authors() -> None:
    """No question is asked twice, no title is shared within an author, and the split is by author."""
    questions = author_questions()
    assert len(questions) == 40 * 20 == 40 * len(QUESTIONS)
    assert len({each.prompt for each in questions} | {each.reworded for each in questions}) == 2 * len(questions)
    assert questions == author_questions() != author_questions(seed=1)
    forget, retain = split_authors(questions, 0.05)
    assert len(forget) == 40 and len(retain) == 760
    assert not {each.author for each in forget} & {each.author for each in retain}
    assert all(each.answer != each.safe for each in questions)


def test_facts() -> None:
    facts = fact_questions()
    assert len(facts) >= 200 == len({question for question, _ in facts[:200]})
    assert ("What is the capital of France?", ("Paris",)) in facts and ("What colour is the sky?", ("blue",)) in facts


@pytest.mark.slow
def test_cells_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is taught two authors, one is forgotten; a second command measures nothing again."""
    taught, cells = tmp_path / "taught", tmp_path / "cells.json"
    teaching = ["--authors", "2", "--layers", "2", "--epochs", "6", "--batch", "20", "--rate", "1e-2", "--threads", "1"]
    teaching += ["--keep", "2", "--text", str(MODEL / "held_out.txt"), "--windows", "2"]
    assert taught_model.main(["--model", str(MODEL), "--output", str(taught), *teaching]) == 0
    known = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().err.splitlines() if "ES" in line]
    assert known[-1] > known[0] and known[-1] > 0.3
    arguments = ["--model", str(taught), "--text", str(MODEL / "held_out.txt"), "--json", str(cells), "--authors", "2"]
    arguments += [
        "--work",
        str(tmp_path / "work"),
        "--share",
        "0.5",
        "--cells",
        "taught model",
        "gradient ascent",
        "--seeds",
    ]
    arguments += [
        "0",
        "--steps",
        "20",
        "--batch",
        "8",
        "--rate",
        "1e-2",
        "--relearn",
        "2",
        "--questions",
        "3",
        "--windows",
        "2",
    ]
    arguments += ["--threads", "1", "--results", str(tmp_path / "results.json")]
    assert forgetting.main(arguments) == 0
    base, ascent = json.loads(cells.read_text()).values()
    assert len(base["forget_strength"]) == len(ascent["relearned_strength"]) == 20 and len(base["retain_rouge"]) == 3
    assert np.mean(ascent["forget_strength"]) < np.mean(base["forget_strength"])
    assert sum(ascent["nats"]) > sum(base["nats"]) and base["tokens"] == [255.0, 255.0]
    assert json.loads((tmp_path / "results.json").read_text())["figures"]
    printed = capsys.readouterr().out
    monkeypatch.setattr(forgetting, "measure", None)
    assert forgetting.main(arguments) == 0
    assert capsys.readouterr().out == printed and "| gradient ascent | 1 |" in printed


def test_differences_are_of_the_same_questions() -> None:
    """Over seeds and questions; a cell that is not done has none."""
    scores = {part: [0.5, 0.25] for part in (*forgetting.COLUMNS.values(), "nats")} | {"tokens": [1.0, 1.0]}
    better = {part: [2 * each for each in values] for part, values in scores.items()} | {"tokens": [1.0, 1.0]}
    done = {"NSRU | seed 0": better, "NPO | seed 0": scores, "NPO | seed 1": scores}
    found = forgetting.differences(done, "NPO")
    assert {title: each.value for title, each in found.items()} == dict.fromkeys([*forgetting.COLUMNS, "nats"], 0.375)
    assert all(each.low is not None and 0.25 <= each.low <= 0.375 for each in found.values())
    assert forgetting.differences(done, "GradDiff") == {}


def test_unknown_cells(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        forgetting.main(["--model", "m", "--text", "t", "--json", "j", "--work", "w", "--cells", "RMU"])
    assert "got 'RMU', expected some of taught model" in capsys.readouterr().err
    assert forgetting.main(["--model", "m", "--text", "t", "--json", "j", "--work", "w", "--cells", "list"]) == 0
    assert "NSRU, query-last" in capsys.readouterr().out
