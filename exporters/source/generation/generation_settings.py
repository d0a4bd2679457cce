"""The generation settings of a checkpoint as their file has them, with checks that name the file and the setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from transformers import GenerationConfig

from enginewright.exporters.source.checkpoint import CONFIG, GENERATION, Checkpoint
from enginewright.exporters.source.json_file import parse_json
from enginewright.exporters.source.unused import Unused
from enginewright.runtime.artifact.sampling_ranges import is_number
from enginewright.runtime.errors import ExportError

_TEXT_PARTS = ("decoder", "generator", "text_config")  # of a config.json, where transformers looks for further settings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one file; `open_settings` creates it.

    file: its name.
    values: by key; those that are null are left out.
    vocab: size of the model's vocabulary.
    unused: takes what is not used.
    """

    file: str
    values: Mapping[str, Any]
    vocab: int
    unused: Unused

    def get(self, key: str) -> Any:
        """Return the value of `key`; None where there is none."""
        return self.values.get(key)

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise ExportError for the value of `key`."""
        raise ExportError(f"{self.file}: {key}: got {self.values[key]!r}, expected {expected}; correct the file")

    def leave(self, key: str, reason: str) -> None:
        """Tell the user that `key` is not used."""
        self.unused.add(self.file, [key], reason)

    def flag(self, key: str) -> bool:
        """Return true or false; false where there is none."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def count(self, key: str, least: int) -> int | None:
        """Return a whole number from `least` up; None where there is none."""
        value = self.get(key)
        if value is not None and not (is_number(value, int) and value >= least):
            self.refuse(key, f"a whole number from {least} up")
        return None if value is None else int(value)

    def tokens(self, key: str) -> tuple[int, ...]:
        """Return a list of token ids; those outside the vocabulary, which never come, are left out and named."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(is_number(token, int) for token in value):
            self.refuse(key, "a list of token ids")
        inside = tuple(token for token in value if 0 <= token < self.vocab)
        if len(inside) < len(value):
            outside = len(value) - len(inside)
            self.leave(key, f"{outside} of its token ids, outside the vocabulary of {self.vocab}; the others are")
        return inside

    def is_sequence(self, value: object) -> bool:
        """Whether `value` is a list of one or more token ids of the vocabulary."""
        return isinstance(value, list) and bool(value) and all(is_number(t, int) and 0 <= t < self.vocab for t in value)


def open_settings(checkpoint: Checkpoint) -> Settings:
    """Return the settings of generation_config.json, or where there is none, those in config.json.

    transformers reads the same, in its `GenerationConfig.from_model_config`.
    """
    file, found = GENERATION, dict(checkpoint.generation)
    if GENERATION not in checkpoint.file_names():
        file, found = CONFIG, _legacy(parse_json(checkpoint.read_file(CONFIG), checkpoint.path / CONFIG))
    return Settings(
        file=file,
        values={key: value for key, value in found.items() if value is not None},
        vocab=int(checkpoint.config.vocab_size),
        unused=checkpoint.unused,
    )


def _legacy(config: Mapping[str, Any]) -> dict[str, Any]:
    """The generation settings among those of the model, of a checkpoint from before the two had files of their own."""
    part = next((config[name] for name in _TEXT_PARTS if isinstance(config.get(name), dict)), config)
    found = {}
    for key in GenerationConfig().to_dict():  # type: ignore[no-untyped-call] # transformers 5.23 has no types there
        value = config[key] if config.get(key) is not None else part.get(key)
        if value is not None:
            found[key] = value
    return found
