"""Tests of `enginewright tune nsru`: its files, its prompts, and its refusals of both."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from enginewright.exporters.methods.nsru.answer_lines import FORGET_KEYS, RETAIN_KEYS, read_answers
from enginewright.exporters.methods.nsru.response_tokens import Prompts, ResponseTokens
from enginewright.exporters.methods.nsru.unlearn_command import read_texts
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.tokenizer.engine_tokenizer import open_tokenizer
from enginewright.runtime.cli import main
from enginewright.runtime.errors import ExportError
from tests.support.paths import ROOT

CHAT, PLAIN = ROOT / "examples/tiny-reasoner", ROOT / "examples/tiny-text"
FORGET: list[dict[str, Any]] = [
    {"prompt": "What is 12 + 15?", "answer": "12 + 15 = 27.", "safe": "This is a sum."},
    {"prompt": "What is 31 + 44?", "answer": "31 + 44 = 75."},
]
RETAIN = [{"prompt": f"What is {20 + i} - {i}?", "answer": "Answer: 20."} for i in range(6)]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The command's files."""
    forget, retain = write(tmp_path / "forget.jsonl", FORGET), write(tmp_path / "retain.jsonl", RETAIN)
    return ["--forget", str(forget), "--retain", str(retain)]


def tokenizer(model: Path) -> Any:
    opened = open_checkpoint(str(model))
    return open_tokenizer(opened, opened.tokenizer_files())


@pytest.mark.slow
def test_the_command(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tune", "nsru", "--model", str(CHAT), *files, "--output", str(tmp_path / "out"), "--category", "sums"]
    command += ["--steps", "2", "--batch", "4", "--threads", "1"]
    assert main([*command, "--at", "query-last", "--centre", "--energy-of", "total", "--modules", "v", "o"]) == 0
    printed = capsys.readouterr().out
    assert "2 answers to forget, 6 to retain" in printed and "1 safe answers are the template's" in printed
    assert f"--apply lora:path={tmp_path / 'out'}" in printed
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["safe_from_template"] == 1 and report["options"]["at"] == "query-last"
    assert {each["name"].rpartition(".")[2] for each in report["modules"]} == {"v_proj", "o_proj"}
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
    assert main(command) == 2
    assert "is not empty; remove it, or choose another --output" in capsys.readouterr().err
    command[command.index(str(tmp_path / "out"))] = str(tmp_path / "second")
    assert main([*command, "--method", "npo", "--length", "24", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(report["answers_cut"].values()) and "safe" not in report["curves"]


def test_prompts_are_those_of_a_chat() -> None:
    chat = tokenizer(CHAT)
    found = Prompts(chat, 100).encode(" What is 12 + 15? ", "It is 27.", "here")
    rendered = "<|im_start|>user\n What is 12 + 15? <|im_end|>\n<|im_start|>assistant\n"
    assert chat.decode(found.ids[: found.prompt]) == rendered
    assert chat.decode(found.ids[found.prompt :]) == "It is 27." and found.response == len(found.ids) - found.prompt
    assert chat.decode(found.ids[: found.query_last + 1]).rstrip() == rendered.partition("<|im_end|>")[0].rstrip()
    assert chat.decode(found.ids[found.query_last]).strip() == "?"


def test_prompts_without_a_template() -> None:
    plain = tokenizer(PLAIN)
    found = Prompts(plain, 100).encode("def f(x):", " return x", "here")
    assert found.ids == (*plain.encode("def f(x):"), *plain.encode(" return x", add_special_tokens=False))
    assert found.query_last == found.prompt - 1


def test_places_of_samples() -> None:
    text = ResponseTokens(ids=tuple(range(10)), prompt=6, query_last=3)
    places = {at: text.ids[text.sampled(at)] for at in ("prompt-last", "query-last", "sequence-last", "all-tokens")}
    assert places == {
        "prompt-last": (5,),
        "query-last": (3,),
        "sequence-last": (9,),
        "all-tokens": tuple(range(10)),
    }


def test_long_lines() -> None:
    prompts = Prompts(tokenizer(PLAIN), 8)
    cut = prompts.encode("a b", "c d e f g h i j k l m n", "file:3")
    assert cut.is_cut and len(cut.ids) == 8
    with pytest.raises(ExportError, match=r"file:4: got a prompt of \d+ tokens, expected fewer than 8"):
        prompts.encode("one two three four five six seven eight nine ten", "x", "file:4")


def test_safe_answers_of_the_template(tmp_path: Path) -> None:
    forget, retain = write(tmp_path / "f.jsonl", FORGET), write(tmp_path / "r.jsonl", RETAIN)
    texts = read_texts(str(CHAT), forget, retain, "sums", 1024)
    said = [tokenizer(CHAT).decode(each.ids[each.prompt :]) for each in texts.safe]
    assert said[0] == "This is a sum."
    assert said[1] == "This question is about sums, which I do not discuss. I can help with related general topics."
    assert texts.templated == 1
    with pytest.raises(ExportError, match=r"f.jsonl:2: got no 'safe' answer, expected one; add it, or give --category"):
        read_texts(str(CHAT), forget, retain, "", 1024)


def test_one_prompt_in_both_files(tmp_path: Path) -> None:
    forget = write(tmp_path / "f.jsonl", FORGET)
    retain = write(tmp_path / "r.jsonl", [*RETAIN, {"prompt": " what is  31 + 44?", "answer": "75"}])
    with pytest.raises(ExportError, match=r"f.jsonl:2: got the prompt 'What is 31 \+ 44\?', which .*r.jsonl:7 retains"):
        read_texts(str(CHAT), forget, retain, "sums", 1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"f.jsonl: got no lines, expected {\"prompt\""),
        ("\n \n", r"f.jsonl: got no lines"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt"', r"f.jsonl:2: not valid JSON .*; expected {\"prompt\""),
        ('["a"]', r"f.jsonl:1: got '\[\"a\"\]', expected"),
        ("{}", r"f.jsonl:1: got '{}', expected"),
        ('{"prompt": "a"}', r"f.jsonl:1: got the keys prompt, expected"),
        ('\n{"prompt": "a", "answer": "b", "saef": "c"}', r"f.jsonl:2: got the keys answer, prompt, saef, expected"),
        ('{"prompt": "a", "answer": 3}', r"f.jsonl:1: 'answer': got 3, expected text that is not empty"),
        ('{"prompt": " ", "answer": "b"}', r"f.jsonl:1: 'prompt': got ' ', expected text"),
        ('{"prompt": "a", "answer": "b", "safe": ""}', r"f.jsonl:1: 'safe': got '', expected text"),
        ('{"prompt": "a", "answer": "\\ud800"}', r"f.jsonl:1: not valid JSON .half a surrogate pair"),
    ],
)
def test_lines_that_are_not_as_expected(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(content)
    with pytest.raises(ExportError, match=message):
        read_answers(tmp_path / "f.jsonl", FORGET_KEYS)


def test_files_that_are_not_as_expected(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none.jsonl: cannot be read .No such file.*; expected a .jsonl file"):
        read_answers(tmp_path / "none.jsonl", RETAIN_KEYS)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(ExportError, match=r"bytes.jsonl: cannot be read as UTF-8 text"):
        read_answers(tmp_path / "bytes.jsonl", RETAIN_KEYS)
    kept = write(tmp_path / "r.jsonl", FORGET[:1])
    with pytest.raises(ExportError, match=r"r.jsonl:1: got the keys answer, prompt, safe, expected {\"prompt\""):
        read_answers(kept, RETAIN_KEYS)


def test_without_the_package_that_draws(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else original(n, *a))
    command = ["tune", "nsru", "--model", str(CHAT), *files, "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "pip install 'enginewright[tune]'" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*command, "--threads", "0"]) == 2
    assert "--threads: got 0, expected 1 or more" in capsys.readouterr().err
