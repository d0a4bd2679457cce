"""The settings of an adapter, adapter_config.json: each key is used, known to change no merge, or refused with the reason.

Source: `LoraConfig` of PEFT 0.21, whose defaults and patterns are used here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from enginewright.runtime.artifact.files.json_file import read_object
from enginewright.runtime.errors import ArtifactError, UnsupportedError

CONFIG = "adapter_config.json"
T = TypeVar("T")
_LARGEST = 1 << 31

NO_MERGE = (  # types of PEFT whose adapters act on the prompt or choose by the request
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "POLY",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "XLORA",
)
USED = {
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "bias",
    "init_lora_weights",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
}
WITHOUT_EFFECT = {  # they choose what is trained and how; the file's tensors say the result
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",  # the module's type decides, in PEFT, too
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "velora_config",
}
REFUSED = {
    "alora_invocation_tokens": "it acts from a token of each request on, which no one set of weights does",
    "arrow_config": "it chooses among adapters for each token, which no one set of weights does",
    "kasa_config": "it also cuts singular values off the base weights; merge it with PEFT, and build the result",
    "layer_replication": "its model has other layers than the checkpoint; merge it with PEFT, and build the result",
    "megatron_config": "it is for layers of Megatron, which split their weights",
    "monteclora_config": "its weights are samples of a distribution; merge it with PEFT, and build the result",
    "use_bdlora": "its factors have blocks; merge it with PEFT, and build the result",
    "use_qalora": "its A reads means of groups of inputs; merge it with PEFT, and build the result",
}
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base weights as they are."""
RESIDUAL_STARTS = ("pissa", "olora")
"""Values of init_lora_weights that subtract a part of each base weight, which follows from the weight alone."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings that a merge depends on; `read_settings` creates it.

    path: of adapter_config.json.
    base: the name or path of the model that it was trained on; empty where the file has none.
    rank, alpha: of every module that no pattern names.
    ranks, alphas: those of modules by patterns, of which the first that matches counts.
    rank_stabilised: whether the scale is alpha / sqrt(rank), not alpha / rank.
    dora: whether each pair has a vector of magnitudes.
    biases: whether each B has a bias.
    residual: "pissa" or "olora" where the base weights lose a part first; empty for other starts.
    saved: endings of the names of modules that the adapter holds whole.
    parameters: endings of the names of parameters that are adapted without a layer of their own.
    tokens: rows of embeddings that the adapter holds, by endings of the modules' names; "" for the input embedding.
    """

    path: Path
    base: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    dora: bool
    biases: bool
    residual: str
    saved: tuple[str, ...]
    parameters: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]

    def rank_of(self, module: str) -> int:
        """The rank of a module's pair."""
        return _first_match(self.ranks, module, self.rank)

    def scaling(self, module: str) -> float:
        """The factor on a module's B A."""
        alpha, rank = _first_match(self.alphas, module, self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def unmatched(self, modules: list[str]) -> list[str]:
        """The patterns that match none of the modules."""
        patterns = dict.fromkeys([*self.ranks, *self.alphas])
        return [pattern for pattern in patterns if not any(_matches(pattern, module) for module in modules)]

    def is_saved(self, name: str) -> bool:
        """Whether the module `name`, or one that it belongs to, is held whole."""
        parts = name.split(".")
        owners = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return any(owner.endswith(ending) for owner in owners for ending in self.saved)

    def token_rows(self, module: str, *, is_input: bool) -> tuple[int, ...] | None:
        """The rows that the adapter holds of an embedding; None if it names none.

        is_input: whether the module is the input embedding.
        """
        named = (rows for ending, rows in self.tokens.items() if ending and f".{module}".endswith(f".{ending}"))
        return next(named, self.tokens.get("") if is_input else None)


def _matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _first_match(patterns: Mapping[str, T], module: str, otherwise: T) -> T:
    return next((value for pattern, value in patterns.items() if _matches(pattern, module)), otherwise)


def read_settings(root: Path) -> AdapterConfig:
    """Read the settings of the adapter in the directory `root`.

    Raises:
        ArtifactError: the file is missing or malformed.
        UnsupportedError: the adapter is of a kind that cannot be merged.
    """
    path = root / CONFIG
    raw = _read_json(path)
    _check_kind(path, raw)
    read = _Reader(path, raw)
    return AdapterConfig(
        path=path,
        base=read.text("base_model_name_or_path"),
        rank=read.number("r", read.given("r", 8), whole=True),
        alpha=read.number("lora_alpha", read.given("lora_alpha", 8), whole=False),
        ranks={key: read.number("rank_pattern", value, whole=True) for key, value in read.patterns("rank_pattern")},
        alphas={key: read.number("alpha_pattern", value, whole=False) for key, value in read.patterns("alpha_pattern")},
        rank_stabilised=read.flag("use_rslora"),
        dora=read.flag("use_dora"),
        biases=read.flag("lora_bias"),
        residual=_residual(path, raw.get("init_lora_weights", True)),
        saved=read.names("modules_to_save"),
        parameters=read.names("target_parameters"),
        tokens=read.rows("trainable_token_indices"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtifactError(f"{path}: not found; expected the directory of a PEFT adapter with it")
    return read_object(path, ArtifactError, "download the file again")


def _check_kind(path: Path, raw: dict[str, Any]) -> None:
    """Raise UnsupportedError for another type of adapter, and for keys that a merge cannot honour or that are not known."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        way = "it has no merge" if kind in NO_MERGE else "merge it with PEFT (merge_and_unload), and build the result"
        raise UnsupportedError(f"{path}: got peft_type {kind!r}, expected 'LORA'; {way}")
    for key, value in raw.items():
        if key in USED or key in WITHOUT_EFFECT or value in (None, False) or value in ([], {}, ""):
            continue
        reason = REFUSED.get(key, "the key is not known, and may change what the adapter does; merge it with PEFT")
        raise UnsupportedError(f"{path}: {key}={value!r} cannot be merged: {reason}")
    if raw.get("bias", "none") not in ("none", "all", "lora_only", None):
        raise ArtifactError(f"{path}: got bias {raw['bias']!r}, expected 'none', 'all' or 'lora_only'")


def _residual(path: Path, start: Any) -> str:
    if isinstance(start, str) and start.lower() in RESIDUAL_STARTS:
        return start.lower()
    if not any(start is plain or (isinstance(start, str) and start.lower() == plain) for plain in PLAIN_STARTS):
        raise UnsupportedError(
            f"{path}: init_lora_weights={start!r} changes the base weights as well, in a way that they alone do not tell; "
            "convert the adapter to plain LoRA (PEFT's path_initial_model_for_weight_conversion) first"
        )
    return ""


@dataclass(frozen=True)
class _Reader:
    """Values of adapter_config.json with checked types; a key of null counts as missing."""

    path: Path
    raw: Mapping[str, Any]

    def given(self, key: str, otherwise: Any) -> Any:
        value = self.raw.get(key)
        return otherwise if value is None else value

    def refuse(self, key: str, value: object, expected: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {key}: got {value!r}, expected {expected}")

    def number(self, key: str, value: Any, *, whole: bool) -> Any:
        kinds, lowest = ((int,), 1) if whole else ((int, float), -_LARGEST)
        if type(value) not in kinds or not lowest <= value <= _LARGEST:
            raise self.refuse(key, value, "a whole number of at least 1" if whole else "a finite number")
        return value

    def flag(self, key: str) -> bool:
        value = self.given(key, False)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self.given(key, "")
        if not isinstance(value, str):
            raise self.refuse(key, value, "a text")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        value = self.given(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise self.refuse(key, value, "a list of names")
        return tuple(value)

    def patterns(self, key: str) -> list[tuple[str, Any]]:
        value = self.given(key, {})
        if not isinstance(value, dict):
            raise self.refuse(key, value, "an object of patterns")
        for pattern in value:
            try:
                re.compile(rf"(.*\.)?({pattern})$")
            except re.error as e:
                raise self.refuse(key, pattern, f"a regular expression ({e})") from e
        return list(value.items())

    def rows(self, key: str) -> dict[str, tuple[int, ...]]:
        value = self.given(key, {})
        by_module = {"": value} if isinstance(value, list) else value
        if not isinstance(by_module, dict) or not all(isinstance(rows, list) for rows in by_module.values()):
            raise self.refuse(key, value, "token ids, or token ids by module")
        for rows in by_module.values():
            if not all(type(row) is int and row >= 0 for row in rows) or len(set(rows)) != len(rows):
                raise self.refuse(key, rows, "token ids, each once")
        return {module: tuple(rows) for module, rows in by_module.items()}
