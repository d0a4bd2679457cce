"""`enginewright run`: prompts from the command line, files and standard input, and where errors are printed."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, RequestError, cli
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.generation_defaults import GenerationDefaults

pytestmark = pytest.mark.native
Capture = pytest.CaptureFixture[str]
SHORT = ["--max-tokens", "4", "--threads", "1", "--json"]


def texts(capsys: Capture, *arguments: str) -> list[str]:
    assert cli.main(["run", *arguments, *SHORT]) == 0
    return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]


def error(capsys: Capture, *arguments: str) -> str:
    assert cli.main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def typed(text: str | bytes) -> io.TextIOWrapper:
    """A standard input with this content."""
    return io.TextIOWrapper(io.BytesIO(text.encode() if isinstance(text, str) else text), encoding="ascii")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prompts_of_every_kind_come_in_order(
    capsys: Capture, tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, file = str(tiny_engine), tmp_path / "prompt.txt"
    file.write_text("a hat\n")
    alone = [texts(capsys, engine, "--prompt", prompt)[0] for prompt in ("the cat", "a hat", "the mat")]
    monkeypatch.setattr("sys.stdin", typed("the mat"))
    assert texts(capsys, engine, "--prompt", "the cat", "--file", str(file), "--file", "-") == alone


def test_lines_are_prompts(capsys: Capture, tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = str(tiny_engine)
    alone = [texts(capsys, engine, "--prompt", prompt)[0] for prompt in ("the cat", "a hat")]
    monkeypatch.setattr("sys.stdin", typed("the cat\r\n\na hat\n"))
    assert texts(capsys, engine, "--lines") == alone


def test_files_are_utf8_whatever_the_locale(
    capsys: Capture, tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte order mark is no part of a prompt, and only line feeds end a line."""
    engine, file, prompt = str(tiny_engine), tmp_path / "prompt.txt", "caf\u00e9\u2028a hat"
    alone = texts(capsys, engine, "--prompt", prompt)
    file.write_bytes(b"\xef\xbb\xbf" + prompt.encode() + b"\n")
    assert texts(capsys, engine, "--file", str(file), "--lines") == alone
    monkeypatch.setattr("sys.stdin", typed(prompt))
    assert texts(capsys, engine, "--lines") == alone


def test_several_answers_have_a_line_each(capsys: Capture, tiny_engine: Path) -> None:
    command = ["run", str(tiny_engine), "--prompt", "the cat", "--prompt", "a hat", "--max-tokens", "3"]
    both = texts(capsys, str(tiny_engine), "--prompt", "the cat", "--prompt", "a hat", "--max-tokens", "3")
    assert cli.main([*command, "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in both)


def test_the_models_defaults_act_unless_they_are_left_aside(capsys: Capture, tiny_engine: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_engine, tmp_path / "engine")
    manifest = directory.load(tmp_path / "engine")
    short = GenerationDefaults(max_tokens=2)
    directory.save(dataclasses.replace(manifest, generation=short), tmp_path / "engine")
    command = ["run", str(tmp_path / "engine"), "--prompt", "the cat", "--threads", "1", "--json"]
    found = []
    for arguments in ([], ["--max-tokens", "3"], ["--no-model-defaults"]):
        assert cli.main([*command, *arguments]) == 0
        found.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert [len(tokens) for tokens in found[:2]] == [2, 3] and len(found[2]) > 3
    assert found[2][:3] == found[1] and found[1][:2] == found[0]


def test_bad_prompts_are_named(
    capsys: Capture, tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, latin, empty = str(tiny_engine), tmp_path / "latin.txt", tmp_path / "empty.txt"
    latin.write_bytes(b"caf\xe9")
    empty.write_text(" \n")
    assert "nothing.txt: cannot be read (No such file or directory)" in error(capsys, engine, "--file", "nothing.txt")
    assert f"{latin}: got bytes that are no UTF-8" in error(capsys, engine, "--file", str(latin))
    assert f"{empty}: got no text, expected a prompt" in error(capsys, engine, "--file", str(empty), "--lines")
    assert "--lines: got no file" in error(capsys, engine, "--lines", "--prompt", "x")
    monkeypatch.setattr("sys.stdin", typed(""))
    assert "standard input: got no text" in error(capsys, engine)
    monkeypatch.setattr("sys.stdin", typed(b"caf\xe9"))
    assert "standard input: got bytes that are no UTF-8" in error(capsys, engine)
    monkeypatch.setattr("sys.stdin", None)
    assert "run: got no prompt; pass --prompt TEXT" in error(capsys, engine)
    assert "standard input: is closed" in error(capsys, engine, "--file", "-")
    monkeypatch.setattr("sys.stdin", Terminal())
    assert "run: got no prompt; pass --prompt TEXT" in error(capsys, engine)


def test_an_error_has_a_line_of_its_own(capsys: Capture, tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Piece:
        text = "half an ans"

    def stream(*_: Any) -> Iterator[Piece]:
        yield Piece()
        raise RequestError("the step failed")

    monkeypatch.setattr(LLM, "stream", stream)
    assert cli.main(["run", str(tiny_engine), "--prompt", "the cat"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "half an ans\n" and captured.err == "enginewright run: error: the step failed\n"


def test_special_tokens_are_printed_on_request(
    capsys: Capture, tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(LLM, "generate", lambda _, prompts, sampling: asked.append(sampling.skip_special_tokens) or [])
    for flags in ([], ["--keep-special-tokens"]):
        assert texts(capsys, str(tiny_engine), "--prompt", "the cat", *flags) == []
    assert asked == [True, False]
