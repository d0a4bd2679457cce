"""Reads the texts that perplexity is measured on; errors name the line at fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from enginewright.runtime.artifact.files.bounded_file import MOST_TEXT, read_bounded
from enginewright.runtime.artifact.files.json_file import parse_json
from enginewright.runtime.errors import RequestError

FORMS = '{"text": ...} or {"prompt": ..., "completion": ...}'


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text to score; created by `read_documents`.

    text: the text whose tokens are scored.
    prompt: the text before it, whose tokens are not scored; may be empty.
    line: the line of the file at which it begins, from 1.
    """

    text: str
    prompt: str = ""
    line: int = 1


def read_documents(path: Path) -> list[Document]:
    """Return a document for each row of a .jsonl file, or a single one for any other file.

    Raises:
        RequestError: the file is missing, empty or not UTF-8, or a row does not have the right form.
    """
    if not path.is_file():
        raise RequestError(f"--data {path}: no such file")
    raw = read_bounded(path, MOST_TEXT, RequestError, "pass a text file")
    try:
        content = raw.decode()
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise RequestError(f"{path}: line {line}: got bytes that are not UTF-8 text ({e.reason})") from e
    if not content.strip():
        raise RequestError(f"{path}: got an empty file, expected text")
    if path.suffix != ".jsonl":
        return [Document(text=content)]
    rows = enumerate(content.split("\n"), start=1)  # not splitlines: a JSON string may hold other line separators
    return [_read_row(row, f"{path}: line {line}", line) for line, row in rows if row.strip()]


def _read_row(row: str, where: str, line: int) -> Document:
    value = parse_json(row, where, RequestError, "is the file truncated?")
    keys = sorted(value) if isinstance(value, dict) else None
    if keys not in (["text"], ["completion", "prompt"]):
        raise RequestError(f"{where}: got {_shorten(row)}, expected {FORMS}")
    for key, text in value.items():
        if not isinstance(text, str) or not text:
            raise RequestError(f"{where}: {key!r}: got {text!r}, expected text that is not empty")
    return Document(text=value.get("text", value.get("completion")), prompt=value.get("prompt", ""), line=line)


def _shorten(row: str) -> str:
    return row if len(row) <= 60 else f"{row[:57]}..."
