"""Reads the prompts and answers to forget and to retain; errors name the line at fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.files.bounded_file import MOST_TEXT, read_bounded
from enginewright.runtime.artifact.files.json_file import parse_json
from enginewright.runtime.errors import ExportError

TEMPLATE = "This question is about {category}, which I do not discuss. I can help with related general topics."
RETAIN_KEYS = frozenset({"prompt", "answer"})
FORGET_KEYS = RETAIN_KEYS | {"safe"}


@dataclass(frozen=True, kw_only=True)
class AnswerLine:
    """A line of a file; `read_answers` creates it.

    line: its number in the file, from 1.
    prompt: the user's text.
    answer: the answer to forget or to retain.
    safe: the answer to give in place of one to forget; empty where the line has none.
    """

    line: int
    prompt: str
    answer: str
    safe: str = ""


def read_answers(path: Path, keys: frozenset[str]) -> list[AnswerLine]:
    """Return the lines of a .jsonl file.

    keys: that a line may have; prompt and answer are the ones it must have.

    Raises:
        ExportError: the file cannot be read or is empty, or a line does not have the form.
    """
    try:
        rows = (
            read_bounded(path, MOST_TEXT, ExportError, "expected a .jsonl file").decode().split("\n")
        )  # not splitlines: a string may hold other separators
    except UnicodeDecodeError as e:
        raise ExportError(f"{path}: cannot be read as UTF-8 text ({e}); expected a .jsonl file") from e
    found = [_read_line(row, f"{path}:{n}", n, keys) for n, row in enumerate(rows, start=1) if row.strip()]
    if not found:
        raise ExportError(f"{path}: got no lines, expected {_form(keys)} in each")
    return found


def refuse_shared(forget: Sequence[AnswerLine], retain: Sequence[AnswerLine], paths: tuple[Path, Path]) -> None:
    """Raise ExportError where a prompt is to be forgotten and retained; spaces and case make no difference."""
    kept = {_normal(line.prompt): line for line in reversed(retain)}
    for line in forget:
        if (other := kept.get(_normal(line.prompt))) is not None:
            raise ExportError(
                f"{paths[0]}:{line.line}: got the prompt {_short(line.prompt)}, which {paths[1]}:{other.line} retains; "
                "expected it in one of the files"
            )


def fill_safe(forget: Sequence[AnswerLine], category: str, path: Path) -> tuple[list[AnswerLine], int]:
    """Return the lines, each with a safe answer, and how many got the template's.

    Raises:
        ExportError: a line has no safe answer, and there is no category for the template.
    """
    missing = [line for line in forget if not line.safe]
    if missing and not category.strip():
        raise ExportError(
            f"{path}:{missing[0].line}: got no 'safe' answer, expected one; add it, or give --category, from which a "
            "template makes one"
        )
    made = TEMPLATE.format(category=category.strip())
    filled = [
        line if line.safe else AnswerLine(line=line.line, prompt=line.prompt, answer=line.answer, safe=made)
        for line in forget
    ]
    return filled, len(missing)


def _read_line(row: str, where: str, number: int, keys: frozenset[str]) -> AnswerLine:
    value = parse_json(row, where, ExportError, f"expected {_form(keys)}")
    if not isinstance(value, dict) or not set(value) >= RETAIN_KEYS or not set(value) <= keys:
        got = f"the keys {', '.join(sorted(value))}" if isinstance(value, dict) and value else _short(row)
        raise ExportError(f"{where}: got {got}, expected {_form(keys)}")
    for key, text in value.items():
        _check_text(text, f"{where}: {key!r}")
    return AnswerLine(line=number, **value)


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ExportError(f"{where}: got {text!r}, expected text that is not empty")


def _form(keys: frozenset[str]) -> str:
    safe = ', and "safe": ... where there is a safe answer' if "safe" in keys else ""
    return f'{{"prompt": ..., "answer": ...}}{safe}'


def _normal(prompt: str) -> str:
    return " ".join(prompt.split()).casefold()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
