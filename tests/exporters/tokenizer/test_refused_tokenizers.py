"""Tests of tokenizer files that no engine can have: each is refused by name, with the way out."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders

from enginewright.exporters.tokenizer import engine_tokenizer, file_checks
from enginewright.exporters.tokenizer.engine_tokenizer import read_tokenizer
from enginewright.runtime import cli
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.tokenizer_kinds import byte_level, open_folder, save_json, write_tokenizer

PLAIN = json.loads(byte_level().to_str())


def _panicking() -> str:
    """A tokenizer whose decoder takes more spaces off than its last token has, at which the library panics."""
    core = tokenizers.Tokenizer.from_str(json.dumps(PLAIN))
    core.add_tokens([" "])
    core.decoder = decoders.Strip(" ", 0, 9)
    return core.to_str()


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("words", "tokenizer.json", json.dumps(PLAIN)[:-9], r"/tokenizer\.json: cannot be read \(.*EOF"),
        ("words", "tokenizer.json", b"\xff\xfe", r"/tokenizer\.json: cannot be read"),
        ("words", "tokenizer.json", "[" * 100_000, r"/tokenizer\.json: cannot be read"),
        ("words", "tokenizer.json", json.dumps({**PLAIN, "model": 3}), r"/tokenizer\.json: cannot be read"),
        ("words", "tokenizer.json", _panicking(), r"tokenizer of tokenizer\.json: cannot be used \(PanicException"),
        (
            "words",
            "tokenizer.json",
            json.dumps({**PLAIN, "model": {**PLAIN["model"], "merges": ["no such"]}}),
            r"/tokenizer\.json: cannot be read \(.*out of vocabulary",
        ),
        ("words", "tokenizer_config.json", "{", r"/tokenizer_config\.json: not valid JSON"),
        ("words", "tokenizer_config.json", "[]", r"/tokenizer_config\.json: got a JSON list, expected an object"),
        ("words", "tokenizer_config.json", '{"a": ' + "[" * 100_000, r"/tokenizer_config\.json: not valid JSON"),
        ("words", "tokenizer_config.json", '{"a": ' + "9" * 5000 + "}", r"/tokenizer_config\.json: not valid JSON"),
        ("words", "tokenizer_config.json", '{"eos_token": 3}', r"tokenizer of tokenizer\.json: .*eos_token"),
        ("words", "tokenizer_config.json", '{"chat_template": 3}', r"chat_template: got 3, expected a text"),
        ("words", "tokenizer_config.json", '{"chat_template": [{"x": 1}]}', r"cannot read it \(KeyError: 'name'\)"),
        ("words", "special_tokens_map.json", "\xff", r"/special_tokens_map\.json: not valid JSON"),
        ("words", "chat_template.jinja", b"\xff", r"/chat_template\.jinja: not valid UTF-8"),
        ("vocab and merges", "vocab.json", '{"a": ', r"/vocab\.json: not valid JSON"),
        ("vocab and merges", "vocab.json", '{"a": "b"}', r"tokenizer of vocab\.json: transformers cannot read it"),
        ("vocab and merges", "merges.txt", b"#v\n\xff a\n", r"/merges\.txt: not valid UTF-8"),
        ("vocab and merges", "merges.txt", "#v\nno such\n", r"tokenizer of vocab\.json: transformers cannot read it"),
        ("word pieces", "vocab.txt", b"a\n\xff\n", r"/vocab\.txt: not valid UTF-8"),
        (
            "SentencePiece BPE",
            "tokenizer.model",
            b"\x0e\x00damaged",
            r"tokenizer of tokenizer\.model: transformers cannot",
        ),
        ("tiktoken", "tokenizer.model", "YQ== x\n", r"tokenizer of tokenizer\.model: transformers cannot read it"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, kind: str, name: str, content: str | bytes, message: str) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint", kind)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) and content != "\xff" else _bytes(content))
    with pytest.raises(ExportError, match=message) as error:
        read_tokenizer(open_folder(folder))
    assert str(error.value).startswith(str(folder)) and "/tmp" not in str(error.value).replace(str(tmp_path), "")


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("latin-1")


def test_a_damaged_vocabulary_that_nothing_reads_is_no_error(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint", "words")
    (folder / "tokenizer.model").write_bytes(b"\x0e")
    assert read_tokenizer(open_folder(folder)) is not None


@pytest.mark.parametrize("files", [("vocab.txt",), ("vocab.json", "merges.txt")])
def test_a_vocabulary_that_the_class_does_not_read(tmp_path: Path, files: tuple[str, ...]) -> None:
    """Where transformers makes a tokenizer of three tokens, without a word."""
    folder = write_tokenizer(tmp_path / "checkpoint", "word pieces" if "vocab.txt" in files else "vocab and merges")
    save_json(folder / "config.json", {"model_type": "llama"})
    save_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    with pytest.raises(
        ExportError, match=r"LlamaTokenizer of transformers does not read a file of this kind; name the"
    ):
        read_tokenizer(open_folder(folder))


def test_code_of_the_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint", "words", auto_map={"AutoTokenizer": ["code.Own", None]})
    save_json(folder / "config.json", {"model_type": "arcee"})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    save_json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "Own"})
    (folder / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(UnsupportedError, match=r"\(auto_map\), which is never run; repair it, or take"):
        read_tokenizer(open_folder(folder))


def test_a_tokenizer_in_python_is_refused(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint", "vocab and merges", tokenizer_class="CTRLTokenizer")
    with pytest.raises(UnsupportedError, match=r"CTRLTokenizer runs in Python, which no tokenizer\.json holds"):
        read_tokenizer(open_folder(folder))


def test_a_class_that_does_more_than_its_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = engine_tokenizer.load_tokenizer

    def load_other(*arguments: Any) -> Any:
        loaded = load(*arguments)
        kind = type(loaded)
        own = type("Own", (kind,), {"encode": lambda self, text, **_: [*kind.encode(self, text), 0]})
        loaded.__class__ = own
        return loaded

    monkeypatch.setattr(engine_tokenizer, "load_tokenizer", load_other)
    with pytest.raises(
        UnsupportedError, match=r"got ids .* without that class, .* with it, expected .* holds all of Own"
    ):
        read_tokenizer(open_folder(write_tokenizer(tmp_path / "checkpoint", "vocab and merges")))


@pytest.mark.parametrize("package", ["sentencepiece", "tiktoken", "protobuf"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint", "SentencePiece BPE")
    find = importlib.util.find_spec
    module = next(key for key, value in file_checks._CONVERTERS.items() if value == package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(ExportError, match=rf"tokenizer.model: needs the package {package} to be read; pip install"):
        read_tokenizer(open_folder(folder))


def test_a_build_ends_with_the_file_and_no_engine(
    checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in checkpoint("llama").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "tokenizer.json").write_text(_panicking())
    assert cli.main(["build", "--model", str(folder), "--output", str(tmp_path / "engine")]) == 2
    shown = capsys.readouterr().err
    assert re.search(r"tokenizer\.json: cannot be used \(PanicException", shown) and "Traceback" not in shown
    assert not (tmp_path / "engine").exists()
