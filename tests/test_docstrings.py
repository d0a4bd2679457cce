"""Tests of the English in docstrings, error messages and opening comments, by the rules of docs/contributing/style.md.

A failing test lists every place as `file:line: text` with what to write instead. A sentence that must stay as it is goes
into ALLOWED, with the reason; an entry that is no longer needed fails, too.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("exporters", "builders", "plugins", "runtime")
FOLDERS = (*PACKAGES, "benchmarks", "examples", "tests")
CXX = ("*.h", "*.cuh", "*.cpp", "*.cu")

OPENINGS = re.compile(r"(What|Where|How|Which|Whatever|Whoever)\b")
OPENING_ADVICE = "begin with a noun phrase or a verb in the third person: 'Runs a plan through TensorRT, ...'"

WORDS = {  # a word that English does not use for order, place or identity: what says it plainly
    "beside": "'next to' (place), 'in addition to' or 'besides' (more), 'compared with' (two results)",
    "behind": "'after' (order, time), 'under' or 'through' (an interface)",
    "alike": "'the same', 'both', 'equally', 'in the same way'",
    "whoever": "'anyone who', 'the caller', or the one who does it by name",
    "nobody": "'no one', 'no caller', 'nothing'; or say who it is about",
}
BANNED = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)

AS_SAYS = re.compile(r"As (the )?`?[A-Z][\w.]*`? (says|does|has it)\b")
AS_SAYS_ADVICE = "say what this one does, or leave the docstring out: the Protocol has one"

ALLOWED: dict[str, str] = {  # "path::qualified name::word" (the module itself: "path::::word") -> reason
}


@dataclass(frozen=True)
class Text:
    """A piece of prose in a file. owner: the qualified name of what it describes, empty for a module."""

    path: Path
    line: int
    owner: str
    text: str
    kind: str

    def complain(self, word: str, advice: str, line: int, text: str) -> Complaint:
        """Make a complaint about `word` in one line of this text."""
        name = self.path.relative_to(ROOT).as_posix()
        return Complaint(f"{name}::{self.owner}::{word}", f"{name}:{line}: {text.strip()!r}: {advice}")


@dataclass(frozen=True)
class Complaint:
    """Something to be rewritten. key: its name in ALLOWED, without a line number; says: the line of the report."""

    key: str
    says: str


def python_files(folder: str) -> list[Path]:
    """Every Python file of a folder of the checkout, none where there is no such folder."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if not is_output(path))


def is_output(path: Path) -> bool:
    """Whether a file lies in a folder that a build or a tool wrote."""
    return any(part.startswith(".") or part in ("build", "__pycache__") for part in path.relative_to(ROOT).parts)


def docstrings(path: Path, tree: ast.AST, owner: str = "") -> Iterator[Text]:
    """The docstrings of a module, its classes and functions at any depth."""
    if isinstance(tree, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and tree.body:
        first = tree.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            kind = "module" if isinstance(tree, ast.Module) else "docstring"
            yield Text(path, first.lineno, owner, first.value.value, kind)
    for node in ast.iter_child_nodes(tree):
        name = getattr(node, "name", None) if isinstance(node, ast.stmt) else None
        yield from docstrings(path, node, ".".join(filter(None, (owner, name))))


def error_texts(path: Path, tree: ast.AST, owner: str = "") -> Iterator[Text]:
    """The string literals, parts of f-strings among them, in `raise` statements."""
    if isinstance(tree, ast.Raise):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield Text(path, node.lineno, owner, node.value, "error")
        return
    for node in ast.iter_child_nodes(tree):
        name = getattr(node, "name", None) if isinstance(node, ast.stmt) else None
        yield from error_texts(path, node, ".".join(filter(None, (owner, name))))


def opening_comment(path: Path) -> Iterator[Text]:
    """The `//` comment that a C++ or CUDA file begins with."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("//"):
            break
        lines.append(line.removeprefix("//"))
    if lines:
        yield Text(path, 1, "", "\n".join(lines), "module")


@functools.cache
def texts(folder: str) -> tuple[Text, ...]:
    """All prose of a folder that this test reads."""
    return tuple(read(folder))


def read(folder: str) -> Iterator[Text]:
    """All prose of a folder, file by file."""
    for path in python_files(folder):
        tree = ast.parse(path.read_text())
        yield from docstrings(path, tree)
        yield from error_texts(path, tree)
    for pattern in CXX:
        for path in sorted((ROOT / folder).rglob(pattern)):
            if not is_output(path):
                yield from opening_comment(path)


def complaints(text: Text) -> Iterator[Complaint]:
    """The complaints about one text."""
    opening = OPENINGS.match(text.text.lstrip())
    if text.kind == "module" and opening:
        yield text.complain(opening[0], OPENING_ADVICE, text.line, text.text.strip().splitlines()[0])
    says = AS_SAYS.match(text.text.strip())
    if says:
        yield text.complain("says", AS_SAYS_ADVICE, text.line, text.text.strip().splitlines()[0])
    for offset, line in enumerate(text.text.splitlines()):
        for word in sorted({found.lower() for found in BANNED.findall(line)}):
            yield text.complain(word, f"for {word!r} write {WORDS[word]}", text.line + offset, line)


@pytest.mark.parametrize("folder", FOLDERS)
def test_prose_is_plain(folder: str) -> None:
    found = [each for text in texts(folder) for each in complaints(text) if each.key not in ALLOWED]
    if found:
        listing = "\n".join(each.says for each in found)
        pytest.fail(f"{len(found)} to rewrite in {folder}/:\n{listing}", pytrace=False)


def test_what_is_allowed_is_there() -> None:
    keys = {each.key for folder in FOLDERS for text in texts(folder) for each in complaints(text)}
    assert not sorted(set(ALLOWED) - keys), "ALLOWED has entries that nothing needs any more; take them out"


def sample(source: str) -> list[str]:
    """The words complained about in a module of this source."""
    path = ROOT / "sample.py"
    tree = ast.parse(source)
    found = (each for text in (*docstrings(path, tree), *error_texts(path, tree)) for each in complaints(text))
    return [each.key.removeprefix("sample.py::") for each in found]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""What runs a plan."""', ["::What"]),
        ('"""Whatever runs it."""', ["::Whatever"]),
        ('"""Whatsoever."""', []),
        ('"""Runs a plan.\n\nWhat it does is said here.\n"""', []),
        ('"""Runs, for whoever asks, Beside others."""', ["::beside", "::whoever"]),
        ('"""Runs besides."""', []),
        ('class A:\n    def b(self):\n        """As Backend says."""', ["A.b::says"]),
        ('def f():\n    """As many as there are."""', []),
        ('def f():\n    """How many there are."""', []),  # openings are judged where they are titles
        ('def f(x):\n    raise ValueError(f"got {x} alike, expected {x}")', ["f::alike"]),
        ('def f():\n    return "behind"', []),
    ],
)
def test_the_check_sees_and_spares(source: str, expected: list[str]) -> None:
    assert sample(source) == expected


def test_the_check_reads_every_folder() -> None:
    for folder in PACKAGES:
        assert sum(text.kind == "module" for text in texts(folder)) > 5, f"{folder}: got too few module docstrings"
    assert any(text.path.suffix == ".cuh" for text in texts("plugins"))
