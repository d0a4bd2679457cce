"""The tokenizer that a build gives an engine, made by transformers from whatever tokenizer files the checkpoint has.

The runtime reads two files. tokenizer.json is the whole tokenizer: vocabulary, added tokens, and what comes before and after a
text. tokenizer_config.json holds the rest: the special tokens by name, the chat templates by name, and whether special tokens
in a text are split like other text. Both are as transformers reads and writes them.

Other settings of a checkpoint's tokenizer_config.json need no place there. Those that make the tokenizer, such as
add_prefix_space and add_bos_token, are in tokenizer.json by then. Those for batches and limits (model_max_length, padding_side,
truncation_side) have no effect where texts are neither cut nor padded. Those that an engine does not follow are named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerBase

from enginewright.exporters.source.checkpoint import CONFIG, Checkpoint
from enginewright.exporters.source.json_file import parse_json
from enginewright.exporters.tokenizer.agreement import check_agreement, fill_token
from enginewright.exporters.tokenizer.file_checks import WAY_OUT, check_files, vocabulary_files
from enginewright.exporters.tokenizer.transformers_tokenizer import load_tokenizer
from enginewright.runtime.artifact.tokenizer_json import SETTINGS, TOKENIZER, parse_tokenizer, tokenizer_errors
from enginewright.runtime.errors import ExportError

_PROCESSOR_TEMPLATE = "chat_template.json"


@dataclass(frozen=True, kw_only=True)
class EngineTokenizer:
    """The tokenizer of an engine; `read_tokenizer` creates it.

    core: gives the same ids and texts as the tokenizer of transformers.
    content: of tokenizer.json, from which `core` was read.
    settings: of tokenizer_config.json.
    """

    core: tokenizers.Tokenizer
    content: bytes
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both files into the new folder `folder` and return their paths."""
        folder.mkdir()
        paths = folder / TOKENIZER, folder / SETTINGS
        paths[0].write_bytes(self.content)
        paths[1].write_text(json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return paths


def read_tokenizer(checkpoint: Checkpoint) -> EngineTokenizer | None:
    """Return the checkpoint's tokenizer; None where it has no vocabulary.

    Parts of its files that an engine does not use are added to `checkpoint.unused`.

    Raises:
        ExportError: a file is damaged, or transformers cannot read it.
        UnsupportedError: a tokenizer.json cannot hold it.
    """
    files, path = checkpoint.tokenizer_files(), checkpoint.path
    loaded = open_tokenizer(checkpoint, files)
    if loaded is None:
        for name in files:
            checkpoint.unused.add(
                name, [name], "there is no vocabulary, so that the engine takes and gives token ids alone"
            )
        return None
    where = f"{path}: the tokenizer of {', '.join(vocabulary_files(files))}"
    with tokenizer_errors(lambda reason: ExportError(f"{where}: cannot be used ({reason}); {WAY_OUT}")):
        content = _serialise(loaded, checkpoint)
        core = parse_tokenizer(content)
        core.encode_special_tokens = loaded.split_special_tokens
        check_agreement(core, loaded, where)
    _name_unused(checkpoint, loaded, files)
    return EngineTokenizer(core=core, content=content, settings=_settings(loaded, path))


def _serialise(loaded: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> bytes:
    core: tokenizers.Tokenizer = loaded.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    if getattr(core.model, "dropout", None):
        checkpoint.unused.add(TOKENIZER, ["model.dropout"], "a text is always split in the most likely way")
        core.model.dropout = None
    return core.to_str(pretty=False).encode()


def _settings(loaded: PreTrainedTokenizerBase, path: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json; the keys are those of transformers, which can read it as well."""
    special = dict(loaded.special_tokens_map)
    others = {name: special.pop(name) for name in list(special) if not name.endswith("_token")}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if others:
        settings["extra_special_tokens"] = others
    if loaded.split_special_tokens:
        settings["split_special_tokens"] = True
    if loaded.chat_template is not None:
        settings["chat_template"] = _templates(loaded.chat_template, path)
    return settings


def _processor_template(files: dict[str, bytes], path: Path) -> str | None:
    """The chat template of a multimodal model's processor, which such a model has in place of its tokenizer's; None without."""
    if _PROCESSOR_TEMPLATE not in files:
        return None
    template = parse_json(files[_PROCESSOR_TEMPLATE], path / _PROCESSOR_TEMPLATE).get("chat_template")
    if not isinstance(template, str):
        raise ExportError(
            f"{path / _PROCESSOR_TEMPLATE}: chat_template: got {template!r}, expected a text; correct the file"
        )
    return template


def need_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Return the tokenizer as transformers reads it.

    Raises:
        ExportError: the checkpoint has none, a file is damaged, or transformers cannot read it.
    """
    found = open_tokenizer(checkpoint, checkpoint.tokenizer_files())
    if found is None:
        raise ExportError(
            f"{checkpoint.path}: got no tokenizer, expected one; add the tokenizer's files to the checkpoint"
        )
    return found


def open_tokenizer(checkpoint: Checkpoint, files: dict[str, bytes]) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer as transformers reads it; None where there is no vocabulary.

    files: `checkpoint.tokenizer_files()`.

    Raises:
        ExportError: a file is damaged, or transformers cannot read it.
    """
    if not vocabulary_files(files):
        return None
    path = checkpoint.path
    check_files(files, path)
    loaded = load_tokenizer({**files, CONFIG: checkpoint.read_file(CONFIG)}, path)
    if checkpoint.is_text_part and loaded.chat_template is None:
        loaded.chat_template = _processor_template(files, path)
    return loaded


def _templates(found: object, path: Path) -> str | list[dict[str, str]]:
    """One template as text, several as a list of their names and texts."""
    if isinstance(found, str):
        return found
    if not isinstance(found, dict) or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise ExportError(
            f"{path / SETTINGS}: chat_template: got {found!r}, expected a text, or a list of names and texts"
        )
    return [{"name": name, "template": text} for name, text in sorted(found.items())]


def _name_unused(checkpoint: Checkpoint, loaded: PreTrainedTokenizerBase, files: dict[str, bytes]) -> None:
    core: tokenizers.Tokenizer = loaded.backend_tokenizer
    add = checkpoint.unused.add
    size = int(checkpoint.config.vocab_size)
    beyond = sorted((id_, token) for token, id_ in core.get_vocab(with_added_tokens=True).items() if id_ >= size)
    reason = f"the model's vocabulary ends at id {size - 1}, and a prompt with a token beyond it is refused"
    add(vocabulary_files(files)[0], [f"{token} ({id_})" for id_, token in beyond], reason)
    if loaded.clean_up_tokenization_spaces and _cleans_up(loaded):
        add(SETTINGS, ["clean_up_tokenization_spaces"], "it takes back spaces of a text that has been streamed already")
    if fill := fill_token(loaded):
        add(SETTINGS, ["fill_token"], f"a text with {fill} is not rearranged; write it with the tokens for infilling")
    if "auto_map" in loaded.init_kwargs:
        add(SETTINGS, ["auto_map"], "code of a checkpoint is never run")
    if _PROCESSOR_TEMPLATE in files and loaded.chat_template is None:
        add(
            _PROCESSOR_TEMPLATE,
            ["chat_template"],
            "it is for images and sound; a tokenizer's is in chat_template.jinja",
        )


def _cleans_up(loaded: PreTrainedTokenizerBase) -> bool:
    """Whether transformers applies clean_up_tokenization_spaces, which it does not for most tokenizers of kind BPE."""
    forced = loaded.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    return bool(forced) or not isinstance(loaded.backend_tokenizer.model, tokenizers.models.BPE)
