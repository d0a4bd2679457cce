"""Tests of `tune reasonalloc`: the curve that it writes, from its own and from given continuations, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.reasonalloc.curve import read_curve
from enginewright.exporters.methods.reasonalloc.written_texts import TextOptions, write_texts
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.tokenizer.engine_tokenizer import need_tokenizer
from enginewright.runtime.cli import main
from enginewright.runtime.errors import ExportError
from enginewright.runtime.evaluation.documents import Document, read_documents
from tests.support.exporters.families import save_checkpoint
from tests.support.paths import ROOT

MODEL = ROOT / "examples/tiny-reasoner"
Capture = pytest.CaptureFixture[str]
Tune = Callable[..., int]


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """Runs the command in process and writes curve.json into the test's folder."""

    def run(*options: str, model: Path = MODEL) -> int:
        command = ["tune", "reasonalloc", "--model", str(model), "--output", str(tmp_path / "curve.json")]
        return main([*command, "--threads", "1", *options])

    return run


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Texts as a model could have written them, the second one too short."""
    rows = [
        {"prompt": "Count up.", "completion": " ".join(str(number) for number in range(60))},
        {"prompt": "Count.", "completion": "1"},
        {"text": "a = 1; b = a + 2; c = b + 3; " * 6},
    ]
    path = tmp_path / "written.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_the_curve_of_given_texts(tune: Tune, written: Path, tmp_path: Path, capsys: Capture) -> None:
    assert tune("--continuations", str(written), "--positions", "10", "--json") == 0
    shown = capsys.readouterr()
    assert "text 2 is left out: " in shown.err and "fewer than 16" in shown.err
    checkpoint = open_checkpoint(str(MODEL))
    curve = read_curve(tmp_path / "curve.json", sha256=hash_of(checkpoint), layers=4)
    assert json.loads(shown.out) == json.loads((tmp_path / "curve.json").read_text())
    assert (curve.texts, curve.positions, curve.data, curve.rho) == (2, 20, "written.jsonl", 0.93)
    assert str(tmp_path) not in shown.out and str(ROOT) not in shown.out
    for demand, heads in zip(curve.demand, curve.heads, strict=True):
        assert heads is not None and len(heads) == 4 and demand == pytest.approx(sum(heads) / 4)
    assert tune("--continuations", str(written), "--positions", "10", "--max-head") == 0
    highest = read_curve(tmp_path / "curve.json", sha256=hash_of(checkpoint), layers=4)
    assert highest.demand == tuple(max(heads) for heads in curve.heads if heads)
    table = capsys.readouterr().out
    assert "2 texts of " in table and f"layer 3: {highest.demand[3]:.1f} (heads " in table
    assert tune("--continuations", str(written), "--positions", "10", "--heads-first", "--rho", "0.5") == 0
    averaged = read_curve(tmp_path / "curve.json", sha256=hash_of(checkpoint), layers=4)
    assert averaged.aggregate == "heads_first" and all(heads and len(heads) == 1 for heads in averaged.heads)


def test_windowed_layers_take_no_part(tune: Tune, tmp_path: Path, written: Path, capsys: Capture) -> None:
    save_checkpoint("gemma3_text", tmp_path / "model", vocab_size=1024)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((MODEL / name).read_bytes())
    assert tune("--continuations", str(written), model=tmp_path / "model") == 0
    demand = json.loads((tmp_path / "curve.json").read_text())["demand"]
    assert demand[0] is None and demand[1] > 1
    assert "layer 0: has a window, takes no part" in capsys.readouterr().out


@pytest.mark.native
@pytest.mark.slow
def test_the_model_continues_generated_problems(tune: Tune, tmp_path: Path) -> None:
    """Two heads of the first layer look up one token by its position; the third layer needs less than its neighbours."""
    assert tune("--data", "reasoning", "--prompts", "2", "--length", "700") == 0
    curve = read_curve(tmp_path / "curve.json", sha256=hash_of(open_checkpoint(str(MODEL))), layers=4)
    assert (curve.texts, curve.data) == (2, "reasoning") and curve.tokens > 2 * 200
    first, second, third, fourth = (curve.shares[layer] for layer in range(4))
    assert first < third < second < fourth
    assert curve.heads[0] is not None and sorted(curve.heads[0])[:2] == pytest.approx([1, 1], abs=0.05)


@dataclass(frozen=True)
class FakeProblem:
    question: str
    level: str
    solution: str = "none"


class FakeData:
    """Data whose model writes 40 times the token 7, or `count` times; it notes what it was asked for."""

    def __init__(self, count: int = 40) -> None:
        self.count = count
        self.asked: list[object] = []

    def read_texts(self, path: Path) -> list[Document]:
        return read_documents(path)

    def make_problems(self, name: str) -> Iterator[FakeProblem]:
        self.asked.append(name)
        number = 0
        while True:
            number += 1
            yield FakeProblem(f"Question {number}", "hard" if number % 2 else "standard")

    def continue_prompts(
        self, model: str, prompts: Sequence[Sequence[int]], length: int, seed: int
    ) -> list[tuple[int, ...]]:
        self.asked.append((model, [list(prompt) for prompt in prompts], length, seed))
        return [(7,) * self.count for _ in prompts]


def test_hard_problems_alone_are_asked_as_the_chat_template_writes_them() -> None:
    data, checkpoint = FakeData(), open_checkpoint(str(MODEL))
    texts = write_texts(checkpoint, "M", "reasoning", data, TextOptions(prompts=2, length=500, seed=3))
    tokenizer = need_tokenizer(checkpoint)
    expected = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Question {number}"}], add_generation_prompt=True, return_dict=False
        )
        for number in (1, 3)
    ]
    assert data.asked == ["demand 3", ("M", expected, 500, 3)]
    assert [text.ids for text in texts] == [(*prompt, *(7,) * 40) for prompt in expected]
    assert [text.given for text in texts] == [len(prompt) for prompt in expected]


def test_prompts_of_a_file_are_cut_to_half_the_length(tmp_path: Path) -> None:
    data, path = FakeData(), tmp_path / "prompts.txt"
    path.write_text("What is 3 + 4? " * 30)
    texts = write_texts(open_checkpoint(str(MODEL)), "M", str(path), data, TextOptions(length=100))
    assert [text.given for text in texts] == [50]
    assert data.asked[0][2] == 100  # type: ignore[index]


def test_continuations_that_are_too_short_are_refused(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("What is 3 + 4?")
    with pytest.raises(ExportError, match="got no text of 16 tokens of the model's own"):
        write_texts(open_checkpoint(str(MODEL)), "M", str(path), FakeData(3), TextOptions())
    assert "text 1 is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--data", "missing.txt"], "missing.txt: no such file"),
        (["--continuations", "missing.jsonl"], "--continuations missing.jsonl: got no file"),
        (["--data", "reasoning", "--prompts", "0"], "--prompts: got 0"),
        (["--data", "reasoning", "--length", "31"], "--length: got 31, expected 32 or more"),
        (["--data", "reasoning", "--rho", "1"], "--rho: got 1.0"),
        (["--data", "reasoning", "--threads", "0"], "--threads: got 0"),
    ],
)
def test_refusals(tune: Tune, options: list[str], complaint: str, capsys: Capture) -> None:
    assert tune(*options) == 2
    assert complaint in capsys.readouterr().err


def test_no_prompts_are_refused(tune: Tune, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    assert tune("--data", str(tmp_path / "empty.jsonl")) == 2
    assert "got an empty file, expected text" in capsys.readouterr().err


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    for file in MODEL.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ExportError, match="got a tokenizer without a chat template"):
        write_texts(open_checkpoint(str(tmp_path)), "M", "reasoning", FakeData(), TextOptions())


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path, capsys: Capture) -> None:
    command = ["tune", "reasonalloc", "--model", "nothing", "--data", "reasoning", "--output"]
    assert main([*command, str(tmp_path)]) == 2
    assert "got a folder, expected a file" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "no" / "curve.json")]) == 2
    assert "got no folder" in capsys.readouterr().err
