"""Checks of a checkpoint's tokenizer files one by one, so that an error names the damaged one, which transformers does not."""

from __future__ import annotations

import fnmatch
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from enginewright.exporters.source.json_file import parse_json
from enginewright.runtime.artifact.files.json_file import MOST_TOKENIZER
from enginewright.runtime.artifact.tokenizer_json import SETTINGS, TOKENIZER, parse_tokenizer, tokenizer_errors
from enginewright.runtime.errors import ExportError

WAY_OUT = "repair it, or take the tokenizer's files out of the checkpoint: the engine then has no tokenizer and takes token ids"
_VOCABULARIES = ("tokenizer*.json", "vocab.*", "tekken.json", "*.model", "*.tiktoken")
_CONVERTERS = {"sentencepiece": "sentencepiece", "tiktoken": "tiktoken", "google.protobuf": "protobuf"}


def vocabulary_files(names: Iterable[str]) -> list[str]:
    """Those of `names` that hold a vocabulary, without which the others make no tokenizer."""
    return [n for n in names if n != SETTINGS and any(fnmatch.fnmatchcase(n, pattern) for pattern in _VOCABULARIES)]


def check_files(files: Mapping[str, bytes], path: Path) -> None:
    """Read each file on its own, except for other vocabularies than a tokenizer.json, which transformers prefers.

    files: of the tokenizer, by name.
    path: of the checkpoint.

    Raises:
        ExportError: a file is damaged, or a package is missing that reads it.
    """
    unread = set(vocabulary_files(files)) - {TOKENIZER} if TOKENIZER in files else set()
    for name, content in files.items():
        if name in unread:
            continue
        if name == TOKENIZER:
            with tokenizer_errors(
                lambda reason: ExportError(f"{path / TOKENIZER}: cannot be read ({reason}); {WAY_OUT}")
            ):
                parse_tokenizer(content)
        elif name.endswith(".json"):
            parse_json(content, path / name, most=MOST_TOKENIZER)
        elif name.endswith((".txt", ".jinja")):
            _check_text(content, path / name)
        elif name.endswith((".model", ".tiktoken")):
            _check_packages(path / name)


def _check_text(content: bytes, path: Path) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as e:
        raise ExportError(f"{path}: not valid UTF-8 ({e}); download the file again") from e


def _check_packages(path: Path) -> None:
    for module, package in _CONVERTERS.items():
        if not _is_installed(module):
            raise ExportError(f"{path}: needs the package {package} to be read; pip install 'enginewright[build]'")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the parent
        return False
