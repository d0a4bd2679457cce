"""Tests of scoring a data file: every token once, every byte once, and clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers

from enginewright.runtime.errors import ArtifactError, RequestError
from enginewright.runtime.evaluation.candidates import Candidate, open_candidates
from enginewright.runtime.evaluation.documents import Document, read_documents
from enginewright.runtime.evaluation.texts import document_texts
from enginewright.runtime.text.tokenizer import Tokenizer

LONG = "the cat sat on the mat, and the hat: naïve 猫 on a mat.\n" * 20


@pytest.fixture
def candidate(tiny_engine: Path) -> Candidate:
    return open_candidates([str(tiny_engine)], None)[0]


@pytest.fixture
def with_bos(make_engine: Callable[..., Path], byte_tokenizer: tokenizers.Tokenizer) -> Candidate:
    """An engine whose tokenizer begins texts with <s>, as the manifest says."""
    core = tokenizers.Tokenizer.from_str(byte_tokenizer.to_str())
    core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    root = make_engine(tokenizer=core)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["model"]["bos_token_id"] = 1
    (root / "manifest.json").write_text(json.dumps(manifest))
    return open_candidates([str(root)], None)[0]


@pytest.mark.parametrize("window", [2, 7, 100, 5000])
def test_windows_score_every_token_once(candidate: Candidate, window: int) -> None:
    ids = candidate.core.encode(LONG).ids
    texts = document_texts(candidate, [Document(text=LONG)], "f", window)
    assert all(2 <= len(text.tokens) <= window and text.given == 1 for text in texts)
    assert [token for text in texts for token in text.tokens[1:]] == ids[1:]
    for before, after in pairwise(texts):
        assert after.tokens[0] == before.tokens[-1], "each begins with the last token before it"
    first_token = len(candidate.core.decode(ids[:1]).encode())
    assert sum(text.size for text in texts) == len(LONG.encode()) - first_token
    assert [text.draw for text in texts] == list(range(len(texts))), "windows are the draws of the only text"


def test_windows_begin_with_the_bos_that_the_tokenizer_writes(with_bos: Candidate) -> None:
    ids = with_bos.core.encode(LONG, add_special_tokens=False).ids
    texts = document_texts(with_bos, [Document(text=LONG)], "f", 50)
    assert all(text.tokens[0] == 1 and text.given == 1 for text in texts)
    assert [token for text in texts for token in text.tokens[1:]] == ids
    assert sum(text.size for text in texts) == len(LONG.encode())
    (completion,) = document_texts(with_bos, [Document(prompt="the cat", text=" sat", line=3)], "f", 50)
    assert completion.tokens[0] == 1 and with_bos.core.decode(completion.tokens[completion.given :]) == " sat"


def test_windows_of_one_document_are_one_draw_beside_others(candidate: Candidate) -> None:
    texts = document_texts(candidate, [Document(text=LONG), Document(text="a cat", line=2)], "f", 100)
    assert [text.draw for text in texts] == [0] * (len(texts) - 1) + [1]


def test_completions_are_scored_after_their_prompt(candidate: Candidate) -> None:
    (text,) = document_texts(candidate, [Document(prompt="the cat", text=" sat on 猫")], "f", 100)
    assert candidate.core.decode(list(text.tokens[: text.given])) == "the cat"
    assert candidate.core.decode(list(text.tokens[text.given :])) == " sat on 猫"
    assert text.size == len(" sat on 猫".encode())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document(text="a", line=4), "f: line 4: got a text of 1 tokens, expected at least 2"),
        (Document(prompt="the cat", text=" sat" * 100, line=5), "f: line 5: got .* of prompt and completion"),
    ],
)
def test_texts_that_cannot_be_scored_are_named(candidate: Candidate, document: Document, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        document_texts(candidate, [document], "f", 20)


def test_rows_of_a_jsonl_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\\u2028b"}\n\n{"completion": "c\u2028", "prompt": "p"}', encoding="utf-8")
    assert read_documents(path) == [
        Document(text="a\u2028b", line=1),
        Document(text="c\u2028", prompt="p", line=3),
    ]


def test_any_other_file_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text('{"text": 1}\nx')
    assert read_documents(tmp_path / "book.txt") == [Document(text='{"text": 1}\nx')]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: got an empty file"),
        ("a.txt", b" \n\n", "a.txt: got an empty file"),
        ("a.txt", b"fine\nfine\nna\xc3", "a.txt: line 3: got bytes that are not UTF-8 text"),
        ("a.jsonl", b"", "a.jsonl: got an empty file"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "y', "line 2: not valid JSON .* truncated"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}', 'line 2: got {"txt": "y"}, expected {"text"'),
        ("a.jsonl", b'{"text": "x", "prompt": "y"}', "line 1: got .* expected"),
        ("a.jsonl", b'{"prompt": "y"}', "line 1: got .* expected"),
        ("a.jsonl", b'["x"]', "line 1: got .* expected"),
        ("a.jsonl", b'{"text": ""}', "line 1: 'text': got '', expected text that is not empty"),
        ("a.jsonl", b'{"text": 7}', "line 1: 'text': got 7, expected text"),
        ("a.jsonl", b'\n\n{"text": "\\ud800"}', "line 3: .*half a surrogate pair"),
    ],
)
def test_bad_data_names_the_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_documents(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nothing\.txt: no such file"):
        read_documents(tmp_path / "nothing.txt")


def test_a_tokenizer_that_fails_on_a_text_is_named(candidate: Candidate) -> None:
    """The library raises `Exception` for a word that is missing, and panics where its decoder strips more than there is."""
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({" ": 0}, unk_token="[UNK]"))
    core.decoder = tokenizers.decoders.Strip(" ", 0, 9)
    broken = replace(candidate, tokenizer=Tokenizer(core, None))
    with pytest.raises(RequestError, match=r"tokenizer/tokenizer\.json: could not encode a prompt that begins 'word'"):
        broken.encode("word", "line 1")
    with pytest.raises(ArtifactError, match=r"tokenizer/tokenizer\.json: could not decode tokens"):
        broken.encode_exactly(" ", "line 1")
