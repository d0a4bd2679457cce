"""transformers' reading of GGUF: settings, names of tensors, changes of their values, and tokenizers, by architecture.

transformers 5.23 has it in private functions that load a whole file. Only this module calls them, with parts of a file: its
metadata, one tensor, or none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS, get_gguf_config
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    Gemma2TensorProcessor,
    LlamaTensorProcessor,
    NemotronTensorProcessor,
    Qwen2MoeTensorProcessor,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from enginewright.exporters.source.formats.gguf.header import Value

ARCHITECTURE = "general.architecture"
_LEFT_OUT = {
    ARCHITECTURE,
    "general.name",
}  # the first is written by itself; a model called mistral has no names of tensors
_TOKENS = "tokenizer.ggml.tokens"
_LONGEST_LIST = 1024  # lists over it are vocabularies, which no setting but their length is made of
_KEPT = 2  # entries of a vocabulary
_ROW_KEEPERS = (
    TensorProcessor,
    LlamaTensorProcessor,
    Gemma2TensorProcessor,
    NemotronTensorProcessor,
    Qwen2MoeTensorProcessor,
)  # they leave a matrix as it is, or exchange whole rows
_ALIASES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}


def known_architectures() -> tuple[str, ...]:
    """The architectures of decoders that transformers reads, by the names that GGUF has for them."""
    theirs = {name: gguf for gguf, name in _ALIASES.items()}
    known = {theirs.get(name, name) for name in GGUF_CONFIG_MAPPING} | set(GGUF_CONFIG_ARCHS)
    return tuple(sorted(known - {"general", "tokenizer", "mistral"}))  # mistral: in files, it is called llama


def read_keys(architecture: str) -> frozenset[str]:
    """The keys of the metadata, without the architecture before them, that transformers makes settings of."""
    mappings: Any = GGUF_CONFIG_MAPPING
    mapping = mappings.get(_ALIASES.get(architecture, architecture), {})
    return frozenset(key for key, name in mapping.items() if name not in (None, -1))


def read_settings(metadata: Mapping[str, Value], tensors: tuple[str, ...]) -> dict[str, Any]:
    """Return the content of config.json that transformers makes of a file with such metadata and names of tensors.

    Raises:
        KeyError, ValueError, TypeError, IndexError: the metadata lack a key or have one of another type.
    """
    architecture = metadata[ARCHITECTURE].value
    if architecture in GGUF_CONFIG_ARCHS:
        plain = {key: len(found.value) if _is_vocabulary(found) else found.value for key, found in metadata.items()}
        made: dict[str, Any] = get_gguf_config(plain, tensors)
        return made
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "metadata.gguf"
        _write_metadata(file, metadata, tensors)
        settings: dict[str, Any] = load_gguf_checkpoint(str(file), return_tensors=False)["config"]  # type: ignore[no-untyped-call]
    return settings


def _write_metadata(file: Path, metadata: Mapping[str, Value], tensors: tuple[str, ...]) -> None:
    """Write a file of metadata with short vocabularies, and of empty tensors: transformers takes minutes to read whole ones."""
    writer = GGUFWriter(file, metadata[ARCHITECTURE].value)
    no_vocabulary = {_TOKENS: Value(value=["", ""], kind=GGUFValueType.ARRAY, element=GGUFValueType.STRING)}
    for key, found in {**no_vocabulary, **metadata}.items():
        if key not in _LEFT_OUT and found.value != []:
            value = found.value[:_KEPT] if _is_vocabulary(found) else found.value
            element = None if found.element is None else GGUFValueType(found.element)
            writer.add_key_value(key, value, GGUFValueType(found.kind), element)
    for name in tensors:
        writer.add_tensor_info(name, (0,), np.dtype(np.float32), 0, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _is_vocabulary(found: Value) -> bool:
    return isinstance(found.value, list) and len(found.value) > _LONGEST_LIST


class ArchitectureReading:
    """The way from an architecture's tensors to transformers' parameters; `TensorTable` creates it."""

    def __init__(self, architecture: str, settings: dict[str, Any]) -> None:
        make: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        self._processor: Any = make(config=settings)

    @property
    def keeps_rows(self) -> bool:
        """Whether every matrix stays as it is, except that whole rows may change places."""
        return type(self._processor) in _ROW_KEEPERS

    def names(self, config: PreTrainedConfig) -> dict[str, str]:
        """Return {name in the file: name of the model's parameter or buffer}; two may make one, as experts' gate and up."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        parts = {name: _Names(child, {}) for name, child in model.named_children()}
        names: dict[str, str] = get_gguf_hf_weights_map(_Names(model, parts), self._processor)
        return names

    def apply(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return the values that a parameter has, from those of the tensor `name` in the file.

        Raises:
            ValueError: its shape does not go with the settings.
        """
        apart: dict[str, Any] = {"tensors": {}}  # gpt2's output projection comes back through it
        result = self._processor.process(weights=values, name=name, parsed_parameters=apart)
        return next(iter(apart["tensors"].values())).numpy() if apart["tensors"] else np.asarray(result.weights)


class _Names:
    """The names in a module and in its parts, as far as transformers has to look; it would visit every module in the model.

    `ArchitectureReading.names` creates it.
    """

    def __init__(self, module: torch.nn.Module, parts: dict[str, _Names]) -> None:
        self.config = getattr(module, "config", None)
        self._state, self._parts = module.state_dict(), parts

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The module's parameters and buffers by name."""
        return self._state

    def named_children(self) -> list[tuple[str, _Names]]:
        """The parts that are looked at apart."""
        return list(self._parts.items())


def make_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that the metadata of `file` describe.

    Raises:
        KeyError, ValueError, TypeError, IndexError: the metadata lack a part or have one of another type.
    """
    architecture, described, settings = get_gguf_tokenizer(str(file))
    backend, _ = convert_gguf_tokenizer(architecture, described)
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)  # type: ignore[no-untyped-call]
    return made


def knows_splitting(name: str) -> bool:
    """Whether transformers knows how the vocabulary called `name` (tokenizer.ggml.pre) splits text into words."""
    return name in GGUF_PRE_TOKENIZER_SPLITS
