"""The tokenizer of a checkpoint as transformers makes it of the checkpoint's tokenizer files, of whatever kind they are."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from enginewright.exporters.tokenizer.file_checks import WAY_OUT, vocabulary_files
from enginewright.runtime.artifact.tokenizer_json import TOKENIZER, tokenizer_errors
from enginewright.runtime.errors import EnginewrightError, ExportError, UnsupportedError

_PROTO = "sentencepiece.sentencepiece_model_pb2"
_TIKTOKEN_CACHE = "TIKTOKEN_CACHE_DIR"


def load_tokenizer(files: Mapping[str, bytes], path: Path) -> PreTrainedTokenizerBase:
    """Return transformers' tokenizer.

    files: by name, the tokenizer's files and config.json, by which transformers chooses the class.
    path: of the checkpoint, for error messages.

    Raises:
        ExportError: transformers cannot read the files.
        UnsupportedError: the tokenizer is code, of the checkpoint or in Python, which a tokenizer.json cannot hold.
    """
    named = f"{path}: the tokenizer of {', '.join(vocabulary_files(files))}"
    with tempfile.TemporaryDirectory() as folder:

        def fail(reason: str) -> EnginewrightError:
            if "trust_remote_code" in reason:
                return UnsupportedError(
                    f"{named}: needs code from the checkpoint (auto_map), which is never run; {WAY_OUT}"
                )
            reason = reason.replace(folder, str(path))
            return ExportError(f"{named}: transformers cannot read it ({reason}); {WAY_OUT}")

        with tokenizer_errors(fail):
            loaded = _load(files, Path(folder))
    kind = type(loaded).__name__
    if not isinstance(getattr(loaded, "backend_tokenizer", None), tokenizers.Tokenizer):
        raise UnsupportedError(f"{named}: {kind} runs in Python, which no tokenizer.json holds; {WAY_OUT}")
    if TOKENIZER not in files and _is_default(loaded, files):
        raise ExportError(
            f"{named}: {kind} of transformers does not read a file of this kind; name the tokenizer_class that does in "
            f"tokenizer_config.json, or {WAY_OUT}"
        )
    return loaded


def _is_default(loaded: PreTrainedTokenizerBase, files: Mapping[str, bytes]) -> bool:
    """Whether transformers makes the same vocabulary without the vocabulary's files: some classes begin with one of their own."""
    others = {name: content for name, content in files.items() if name not in vocabulary_files(files)}
    try:
        with tempfile.TemporaryDirectory() as folder, tokenizer_errors(ExportError):
            default = _load(others, Path(folder))
    except ExportError:
        return False
    return bool(default.get_vocab() == loaded.get_vocab())


def _load(files: Mapping[str, bytes], folder: Path) -> PreTrainedTokenizerBase:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    with _uncached(), readable_sentencepiece():
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, mistral_format=False
        )
    return loaded


@contextmanager
def _uncached() -> Iterator[None]:
    """Keep tiktoken from leaving a copy of the vocabulary in the machine's temporary folder."""
    before = os.environ.get(_TIKTOKEN_CACHE)
    os.environ[_TIKTOKEN_CACHE] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TIKTOKEN_CACHE]
        else:
            os.environ[_TIKTOKEN_CACHE] = before


@contextmanager
def readable_sentencepiece() -> Iterator[None]:
    """Give transformers its own copy of SentencePiece's format where the one of sentencepiece needs a newer protobuf.

    sentencepiece 0.2.3 needs protobuf 7.36, and Triton's client one below 7; not needed once both take the same.
    """
    if _PROTO in sys.modules or not _needs_newer_protobuf():
        yield
        return
    ours: Any = importlib.import_module("transformers.utils.sentencepiece_model_pb2_new")
    sys.modules[_PROTO] = ours
    try:
        yield
    finally:
        del sys.modules[_PROTO]


def _needs_newer_protobuf() -> bool:
    try:
        importlib.import_module(_PROTO)
    except ModuleNotFoundError:  # there is no sentencepiece, which `check_files` refuses where one is needed
        return False
    except Exception as e:  # VersionError, of a module that protobuf has from version 5.26 on
        if type(e).__name__ != "VersionError":
            raise
        return True
    return False
