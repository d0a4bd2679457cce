"""Tests of the command `eval`: its output and files, and its refusal of bad input before it runs anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from enginewright.runtime import cli
from enginewright.runtime.evaluation import score
from enginewright.runtime.evaluation.problems import Problem, held_out_problems
from enginewright.runtime.evaluation.suites import Task, pick_problems
from tests.support.paths import ROOT

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when an engine is loaded."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an engine was loaded")

    monkeypatch.setattr(score, "load", fail)


def _evaluate(capsys: Capture, *arguments: object) -> dict[str, Any]:
    """Return the printed report."""
    assert cli.main(["eval", *map(str, arguments), "--json", "--no-report", "--threads", "1"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def _fails(capsys: Capture, *arguments: object) -> str:
    assert cli.main(["eval", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err


def _without_times(report: dict[str, Any]) -> dict[str, Any]:
    for engine in report["engines"]:
        assert engine.pop("timing")["seconds"] > 0
    return report


@pytest.mark.native
@pytest.mark.parametrize("suite", ["reasoning", "perplexity"])
def test_the_same_seed_gives_the_same_report_whatever_the_batch(
    capsys: Capture, asked_engine: Path, other_engine: Path, suite: str
) -> None:
    command = [other_engine, "--suite", suite, "--limit", 6, "--reference", asked_engine]
    first, again, alone, other = (
        _without_times(_evaluate(capsys, *command, "--seed", seed, "--max-batch", batch))
        for seed, batch in ((3, 8), (3, 8), (3, 1), (4, 8))
    )
    assert first == again
    assert _rounded(first) == _rounded(alone), "a batch of another shape may change the last digits, and nothing else"
    assert _rounded(first) != _rounded(other)


def _rounded(value: Any) -> Any:
    """Return the report with four digits of every number."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


@pytest.mark.native
def test_an_engine_is_its_own_equal(capsys: Capture, asked_engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(asked_engine, copy)
    report = _evaluate(capsys, copy, "--suite", "retrieval", "--limit", 2, "--reference", asked_engine)
    assert [engine["name"] for engine in report["engines"]] == ["tiny", "copy"] and report["reference"] == "tiny"
    agreement = report["engines"][1]["agreement"]
    assert agreement["mean_kl"]["value"] == 0 and agreement["worst_kl"]["value"] == 0
    assert agreement["top1"]["value"] == agreement["answers"]["value"] == agreement["never_parts"]["value"] == 1
    assert agreement["parts_after"] is None and not report["engines"][1]["difference"]["differs"]
    assert report["engines"][0]["agreement"] is None


@pytest.mark.native
def test_perplexity_is_that_of_the_logits(capsys: Capture, asked_engine: Path, tmp_path: Path) -> None:
    from enginewright.runtime import load

    data = tmp_path / "text.jsonl"
    texts = ["the cat sat on the mat", "a hat and the naïve cat"]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    report = _evaluate(capsys, asked_engine, "--suite", "perplexity", "--data", data)
    nats, tokens, size = 0.0, 0, 0
    with load(asked_engine, threads=1) as llm:
        assert llm.tokenizer is not None
        for text in texts:
            ids = llm.tokenizer.encode(text)
            logits = llm.logits(ids).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            nats -= logprobs[np.arange(len(ids) - 1), ids[1:]].sum()
            tokens += len(ids) - 1
            size += len(text.encode()) - len(llm.tokenizer.decode(ids[:1]).encode())
    found = report["engines"][0]["likelihood"]
    assert found["tokens"] == tokens and report["drawn"] == {"texts": 2}
    assert found["nats"]["value"] == pytest.approx(nats / tokens)
    assert found["perplexity"]["value"] == pytest.approx(np.exp(nats / tokens))
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / np.log(2) / size)
    assert found["nats"]["low"] <= found["nats"]["value"] <= found["nats"]["high"]


@pytest.mark.native
def test_the_table_and_the_files(capsys: Capture, asked_engine: Path, other_engine: Path, tmp_path: Path) -> None:
    engines = [tmp_path / name for name in ("first", "second")]
    for source, root in zip((asked_engine, other_engine), engines, strict=True):
        shutil.copytree(source, root)
    picture, records = tmp_path / "picture.png", tmp_path / "records.jsonl"
    command = [*engines, "--suite", "reasoning", "--limit", 4, "--reference", engines[0], "--threads", 1]
    assert cli.main(["eval", *map(str, [*command, "--plot", picture, "--records", records])]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("reasoning, standard problems: 2 arithmetic, 1 variables, 1 lists; seed 0;")
    assert table[2].split()[:2] == ["engine", "right"] and table[3].startswith("first (reference)")
    assert table[4].startswith("second") and table[6].startswith("against first") and len(table) == 8
    assert len({len(line) for line in table[2:5]}) == 1, "columns are aligned"
    _check_picture(picture)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    assert [(row["engine"], row["index"]) for row in rows] == [(n, i) for n in ("first", "second") for i in range(4)]
    assert rows[0]["question"] == held_out_problems("arithmetic", "standard", 1, 0)[0].question
    assert "mean_kl" in rows[4] and "mean_kl" not in rows[0]
    for root in engines:
        report = json.loads((root / "reports/eval-reasoning-standard.json").read_text())
        assert [engine["name"] for engine in report["engines"]] == [root.name] and report["reference"] == "first"


@pytest.mark.native
def test_a_report_goes_to_the_engines_that_are_evaluated(capsys: Capture, asked_engine: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(asked_engine, tmp_path / name)
    (tmp_path / "book.txt").write_text("the cat sat on the mat")
    command = ["--suite", "perplexity", "--data", tmp_path / "book.txt", "--reference", tmp_path / "first"]
    assert cli.main(["eval", *map(str, [tmp_path / "second", *command])]) == 0
    assert (tmp_path / "second/reports/eval-perplexity-book.json").is_file()
    assert not (tmp_path / "first/reports").exists()
    assert cli.main(["eval", *map(str, [tmp_path / "second", *command, "--no-report"])]) == 0
    assert len(list((tmp_path / "second/reports").iterdir())) == 1


def _check_picture(path: Path) -> None:
    from matplotlib import image

    pixels = image.imread(path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and pixels.shape[:2] == (504, 1200)
    assert 0.02 < (pixels[..., :3].min(-1) < 0.9).mean() < 0.5, "drawn upon, and not black"


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch, scripted: Any, byte_tokenizer: tokenizers.Tokenizer
) -> Iterator[dict[str, Any]]:
    """Engines by the name of their folder; `load` returns these."""
    engines: dict[str, Any] = {}

    def load(root: Path, threads: int | None, **options: object) -> Any:
        assert (threads, options) == (1, {"max_batch": 5, "verify": False, "backend": "onnxruntime"})
        return engines[root.name]

    monkeypatch.setattr(score, "load", load)
    yield engines


def _answering(problems: list[Problem], wrong: set[int]) -> Callable[[str], tuple[str, str]]:
    """A reply function that is right except for the problems numbered in `wrong`, which it never finishes."""
    by_question = {problem.question: (i, problem) for i, problem in enumerate(problems)}

    def reply(prompt: str) -> tuple[str, str]:
        index, problem = by_question[prompt.removeprefix("<user>").removesuffix("\n<reply>")]
        return (problem.solution[:-3], "length") if index in wrong else (problem.solution, "stop")

    return reply


def test_right_answers_are_counted(
    capsys: Capture, asked_engine: Path, tmp_path: Path, script: Any, scripted: Any, byte_tokenizer: Any
) -> None:
    problems = pick_problems(Task(suite="reasoning", limit=30, seed=5))
    wrong = {"perfect": set(), "fair": {0, 1, 10, 20, 21}, "poor": set(range(3, 30))}
    for name, numbers in wrong.items():
        shutil.copytree(asked_engine, tmp_path / name)
        script[name] = scripted(byte_tokenizer, _answering(problems, numbers), flavour=0.01 * len(numbers))
    roots = [tmp_path / name for name in wrong]
    command = ["--suite", "reasoning", "--limit", 30, "--seed", 5, "--max-batch", 5, "--backend", "onnxruntime"]
    report = _evaluate(capsys, *roots[1:], *command, "--reference", roots[0])
    perfect, fair, poor = report["engines"]
    assert [engine["accuracy"]["overall"]["value"] for engine in report["engines"]] == [1, 25 / 30, 3 / 30]
    assert [fair["accuracy"]["kinds"][kind]["value"] for kind in report["drawn"]] == [0.8, 0.9, 0.8]
    assert fair["accuracy"]["finish_reasons"] == {"length": 5, "stop": 25}
    assert perfect["accuracy"]["overall"]["low"] == pytest.approx(0.8865, abs=1e-4)
    assert perfect["difference"] is None
    assert (
        fair["difference"]["estimate"]["value"] == pytest.approx(-5 / 30) and fair["difference"]["against"] == "perfect"
    )
    assert fair["difference"]["mcnemar"] == pytest.approx(2 / 2**5)
    assert [engine["difference"]["differs"] for engine in (fair, poor)] == [True, True]
    assert [engine["agreement"]["answers"]["value"] for engine in (fair, poor)] == [25 / 30, 3 / 30]
    assert fair["agreement"]["never_parts"]["value"] == 25 / 30
    assert 0 < fair["agreement"]["mean_kl"]["value"] < poor["agreement"]["mean_kl"]["value"]
    kl = poor["agreement"]["mean_kl"]
    assert kl["low"] < kl["value"] < kl["high"] < poor["agreement"]["worst_kl"]["value"]
    lengths = [len(byte_tokenizer.encode(problem.solution).ids) for problem in problems]
    assert script["fair"].limits == [length * 3 // 2 + 32 for length in lengths]
    assert (scripted.loaded, scripted.most_loaded) == (0, 2), "the reference and one more"
    scripted.most_loaded = 0
    assert cli.main(["eval", *map(str, [*roots, *command, "--no-report", "--threads", 1])]) == 0
    assert scripted.most_loaded == 1
    lines = capsys.readouterr().out.splitlines()
    assert "worse" in lines[-1] and "-90.0 [" in lines[-1] and "KL" not in lines[-3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "poetry"], "--suite: got 'poetry', expected one of reasoning, retrieval, perplexity"),
        (["--suite", "reasoning", "--level", "absurd"], "--level: got 'absurd', expected one of standard, hard"),
        (["--suite", "reasoning", "--limit", "0"], "--limit: got 0, expected 1 or more"),
        (["--suite", "reasoning", "--seed", "-1"], "--seed: got -1, expected 0 or more"),
        (["--suite", "reasoning", "--max-batch", "99"], "--max-batch: got 99, expected at most 8"),
        (["--suite", "reasoning", "--data", "x"], "--data: got a file for the suite reasoning"),
        (["--suite", "perplexity", "--window", "9"], "--window: got no --data"),
        (["--suite", "perplexity", "--data", "nothing.txt"], "--data nothing.txt: no such file"),
        (["--suite", "perplexity", "--data", str(ROOT / "LICENSE"), "--window", "5000"], "expected at most 1024"),
        (
            ["--suite", "reasoning", "--plot", "nowhere/a.png"],
            "--plot nowhere/a.png: got a path that cannot be written",
        ),
        (["--suite", "reasoning", "--plot", "a.jpg"], "got the suffix '.jpg', expected .png"),
        (["--suite", "reasoning", "--reference", "nothing"], "nothing: got no manifest.json"),
    ],
)
def test_bad_arguments_are_named(
    capsys: Capture, asked_engine: Path, never_loads: None, arguments: list[str], message: str
) -> None:
    assert message in _fails(capsys, asked_engine, *arguments)


def test_bad_engines_are_named(
    capsys: Capture, asked_engine: Path, never_loads: None, make_engine: Any, byte_tokenizer: Any, tmp_path: Path
) -> None:
    suite = ["--suite", "reasoning", "--limit", "4"]
    assert f"{asked_engine}: got this engine 2 times" in _fails(
        capsys, asked_engine, asked_engine / "graphs/..", *suite
    )
    assert "got an engine without a tokenizer" in _fails(capsys, make_engine(), *suite)
    plain = make_engine(tokenizer=byte_tokenizer)
    assert "no chat template" in (message := _fails(capsys, asked_engine, plain, *suite)) and str(plain) in message
    small = make_engine(
        tokenizer=byte_tokenizer, max_context=64, config='{"chat_template": "{{ messages[0].content }}"}'
    )
    assert "expected at most 64 together, the smallest context" in _fails(capsys, asked_engine, small, *suite)
    wide = make_engine(tokenizer=byte_tokenizer, vocab=301)
    assert "got a vocabulary of 300, expected 301" in _fails(capsys, wide, *suite, "--reference", asked_engine)
    ids = byte_tokenizer.get_vocab()
    swapped = byte_tokenizer.to_str().replace('"<s>"', '"<t>"')
    assert "<s>" in ids
    renamed = make_engine(tokenizer=tokenizers.Tokenizer.from_str(swapped))
    assert "got other tokens than" in _fails(capsys, renamed, *suite, "--reference", asked_engine)
    shutil.copytree(asked_engine, tmp_path / "damaged")
    graph = tmp_path / "damaged/graphs/decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    assert "content differs" in _fails(capsys, asked_engine, tmp_path / "damaged", *suite)


def test_a_tokenizer_that_cannot_write_the_task_is_named(
    capsys: Capture, never_loads: None, make_engine: Any, tmp_path: Path
) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "what": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    root = make_engine(tokenizer=words, config='{"chat_template": "{{ messages[0].content }}"}')
    message = _fails(capsys, root, "--suite", "reasoning", "--limit", "1")
    assert "problem 0 (arithmetic, standard)" in message and "has no token for" in message
    (tmp_path / "a.txt").write_text("what who")
    message = _fails(capsys, root, "--suite", "perplexity", "--data", tmp_path / "a.txt")
    assert "a.txt: line 1" in message and "has no token for 'who' at position 5" in message
    lossy = tokenizers.Tokenizer(tokenizers.models.BPE())
    lossy.normalizer = tokenizers.normalizers.Replace("=", "-")
    lossy.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    lossy.decoder = tokenizers.decoders.ByteLevel()
    lossy.train_from_iterator(
        [],
        tokenizers.trainers.BpeTrainer(
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    root = make_engine(tokenizer=lossy, config='{"chat_template": "{{ messages[0].content }}"}')
    assert "its tokenizer turns '=" in _fails(capsys, root, "--suite", "retrieval", "--limit", "1")


def test_truncated_data_is_named(capsys: Capture, asked_engine: Path, never_loads: None, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "the cat"}\n{"text": "the')
    assert "rows.jsonl: line 2: not valid JSON" in _fails(capsys, asked_engine, "--suite", "perplexity", "--data", path)
    path.write_text("")
    assert "got an empty file" in _fails(capsys, asked_engine, "--suite", "perplexity", "--data", path)


def test_a_plot_without_matplotlib_is_refused_first(
    capsys: Capture, asked_engine: Path, never_loads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = _fails(capsys, asked_engine, "--suite", "reasoning", "--plot", tmp_path / "a.png")
    assert "no Python package 'matplotlib'" in message and "pip install 'enginewright[eval]'" in message


def test_a_folder_that_cannot_be_written_is_refused_first(
    capsys: Capture, asked_engine: Path, never_loads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "pass --no-report" in _fails(capsys, asked_engine, "--suite", "reasoning")


@pytest.mark.parametrize(("limit", "counts"), [(1, [1]), (2, [1, 1]), (200, [67, 67, 66]), (None, [67, 67, 66])])
def test_a_limit_is_divided_evenly(limit: int | None, counts: list[int]) -> None:
    problems = pick_problems(Task(suite="reasoning", limit=limit))
    kinds = [problem.kind for problem in problems]
    assert [kinds.count(kind) for kind in dict.fromkeys(kinds)] == counts


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("runtime", ["enginewright.runtime.evaluation", "numpy"]),
        ("runtime.llm", ["enginewright.runtime.evaluation"]),
        ("runtime.commands.eval", ["torch", "transformers", "onnx", "lm_eval", "matplotlib"]),
    ],
)
def test_importing_loads_no_more_than_it_needs(module: str, forbidden: list[str]) -> None:
    code = (
        "import sys, types, importlib\n"
        "package = types.ModuleType('enginewright')\n"
        f"package.__path__ = [{str(ROOT)!r}]\n"
        "sys.modules['enginewright'] = package\n"
        f"importlib.import_module('enginewright.{module}')\n"
        f"print(*[name for name in {forbidden!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
