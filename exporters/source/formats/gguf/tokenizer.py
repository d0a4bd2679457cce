"""The tokenizer's files of a GGUF checkpoint, made of its metadata: tokenizer.json, its settings and the chat template."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from enginewright.exporters.source.formats.gguf.header import Header
from enginewright.exporters.source.formats.gguf.transformers_reading import knows_splitting, make_tokenizer
from enginewright.exporters.source.json_file import parse_json
from enginewright.runtime.artifact.files.json_file import MOST_TOKENIZER
from enginewright.runtime.errors import ExportError

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_KIND, _TOKENS, _SPLITTING = "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.pre"
_CHAT = "tokenizer.chat_template"
_BYTES = "gpt2"  # the kind of vocabularies of bytes, whose merges depend on how text is split into words
_AS_GPT2 = ("default", "gpt-2", "jais", "mpt", "olmo")
_AS_GPT2_BY_DIGITS = ("codeshell", "exaone", "refact", "smollm", "starcoder")
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_USED = {
    *(_KIND, _TOKENS, _SPLITTING, _CHAT),
    *(
        f"tokenizer.ggml.{key}"
        for key in ("scores", "token_type", "merges", "precompiled_charsmap", "add_space_prefix")
    ),
    *(f"tokenizer.ggml.{key}" for key in ("bos_token_id", "unknown_token_id", "padding_token_id", *_ENDS)),
    *(f"tokenizer.ggml.{key}" for key in ("add_bos_token", "add_eos_token")),
}


def file_names(header: Header) -> tuple[str, ...]:
    """Names of the files that `make_files` makes of these metadata."""
    if header.get(_KIND, "no_vocab") in ("no_vocab", "none") or _TOKENS not in header.metadata:
        return ()
    return (TOKENIZER, SETTINGS, *([TEMPLATE] if _CHAT in header.metadata else []))


def unused_keys(header: Header) -> tuple[list[str], str]:
    """Return the tokenizer's keys that no file is made of, unless they are off, and what the file says of a way to split text that is not known, or ""."""
    splitting = header.get(_SPLITTING)
    known = splitting is not None and (knows_splitting(str(splitting)) or splitting in (*_AS_GPT2, *_AS_GPT2_BY_DIGITS))
    keys = [key for key in header.metadata if key.startswith("tokenizer.") and key not in _USED and header.get(key)]
    said = f"{_SPLITTING} (missing)" if splitting is None else f"{_SPLITTING}={splitting}"
    return keys, "" if header.get(_KIND) != _BYTES or known else said


def make_files(header: Header) -> dict[str, bytes]:
    """Return the content of the files in `file_names`.

    Raises:
        ExportError: the metadata describe no tokenizer that transformers knows.
    """
    try:
        made: Any = make_tokenizer(header.file)
    except (KeyError, ValueError, TypeError, IndexError) as e:
        raise ExportError(
            f"{header.file}: transformers cannot make a tokenizer of its metadata ({type(e).__name__}: {e}); the file is "
            "damaged or of a kind that is not known"
        ) from e
    made.chat_template = header.get(_CHAT)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        files = {name: (Path(folder) / name).read_bytes() for name in file_names(header)}
    if header.get(_KIND) == _BYTES and header.get(_SPLITTING) in _AS_GPT2_BY_DIGITS:
        files[TOKENIZER] = _split_digits(files[TOKENIZER])
    return files


def end_tokens(header: Header) -> list[int]:
    """Ids of the tokens that end an answer: the end of the text, of a turn and of a message."""
    found = [header.get(f"tokenizer.ggml.{key}") for key in _ENDS]
    return list(dict.fromkeys(token for token in found if token is not None))


def _split_digits(content: bytes) -> bytes:
    """Let a tokenizer.json that splits text as GPT-2's also split numbers into digits."""
    described = parse_json(content, Path(TOKENIZER), most=MOST_TOKENIZER)
    digits = {"type": "Digits", "individual_digits": True}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, described["pre_tokenizer"]]}
    return json.dumps(described, ensure_ascii=False).encode()
