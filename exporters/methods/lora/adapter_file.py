"""The tensors of an adapter, adapter_model.safetensors: what each belongs to and is for, by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from enginewright.runtime.errors import ExportError, UnsupportedError

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_NAME = r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?"  # of the adapter; PEFT leaves it out
_FORMS = {  # role -> what follows the module's name
    "A": rf"\.lora_A{_NAME}\.weight",
    "B": rf"\.lora_B{_NAME}\.weight",
    "B bias": rf"\.lora_B{_NAME}\.bias",
    "embedding A": rf"\.lora_embedding_A{_NAME}",
    "embedding B": rf"\.lora_embedding_B{_NAME}",
    "magnitude": rf"\.lora_magnitude_vector{_NAME}(?:\.weight)?",
    "tokens": rf"\.token_adapter\.trainable_tokens_delta{_NAME}",
    "training": rf"\.lora_velora_embed{_NAME}",
    "saved": rf"\.modules_to_save{_NAME}\.(?P<rest>.+)",
    "base": r"\.(?:base_layer|original_module)\.(?P<rest>[^.]+)",
}
_PATTERNS = {role: re.compile(rf"(?P<module>.+?){form}") for role, form in _FORMS.items()}
_OF_PEFT = re.compile(r"\.(lora_\w+|token_adapter|base_layer|modules_to_save|original_module)(\.|$)")


@dataclass(frozen=True, kw_only=True)
class AdapterTensor:
    """A tensor of an adapter; `AdapterFile` creates it.

    key: its name in the file.
    role: one of the keys of `_FORMS`, or "plain": a parameter of the model under its own name.
    name: of the module; of the parameter where the role is "saved", "base" or "plain".
    shape: of the tensor.
    """

    key: str
    role: str
    name: str
    shape: tuple[int, ...]


class AdapterFile:
    """The tensors of an adapter, which are read one by one.

    Raises:
        ExportError: the file is missing or damaged, or holds no adapter.
        UnsupportedError: a tensor is of no kind that is known, or several adapters are in one file.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / WEIGHTS
        if not self.path.is_file():
            pickled = self.path.with_suffix(".bin").is_file()
            hint = f"; {self.path.stem}.bin is a pickle, which can run code when read: save the adapter anew"
            raise ExportError(
                f"{self.path}: not found; expected a PEFT adapter saved as safetensors{hint if pickled else ''}"
            )
        self._last_pair: tuple[str, torch.Tensor, torch.Tensor] | None = None
        adapters: set[str] = set()
        try:
            self._file = cast(Any, safe_open(self.path, framework="pt"))
            self.entries = tuple(self._entry(key, adapters) for key in sorted(self._file.keys()))
        except SafetensorError as e:
            raise ExportError(f"{self.path}: not a whole safetensors file ({e})") from e
        if not self.entries:
            raise ExportError(f"{self.path}: holds no adapter; expected lora_A and lora_B of at least one module")
        if len(adapters) > 1:
            raise UnsupportedError(f"{self.path}: got tensors of the adapters {sorted(adapters)}, expected one adapter")

    def read(self, key: str) -> torch.Tensor:
        """Return the tensor `key` as float32.

        Raises:
            ExportError: it is of a type without fractions, or holds NaN or infinity.
        """
        tensor: torch.Tensor = self._file.get_tensor(key)
        if not tensor.is_floating_point():
            raise ExportError(f"{self.path}: tensor {key!r} got type {tensor.dtype}, expected floating point numbers")
        tensor = tensor.to(torch.float32, copy=True)
        if not tensor.isfinite().all():
            raise ExportError(f"{self.path}: tensor {key!r} holds NaN or infinity")
        return tensor

    def dtype(self, key: str) -> torch.dtype:
        """Return the type in which the file has the tensor `key`."""
        return cast(torch.dtype, self._file.get_tensor(key).dtype)

    def read_pair(self, a: str, b: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two tensors as `read` does, and keep them until another pair is read: each expert has a part of them."""
        if self._last_pair is None or self._last_pair[0] != a:
            self._last_pair = a, self.read(a), self.read(b)
        return self._last_pair[1], self._last_pair[2]

    def _entry(self, key: str, adapters: set[str]) -> AdapterTensor:
        """The tensor `key`, whose values are checked; the name of its adapter, if it has one, is added to `adapters`."""
        shape, rest = tuple(self.read(key).shape), key.removeprefix(PREFIX)
        for role, pattern in _PATTERNS.items():
            if match := pattern.fullmatch(rest):
                found = match.groupdict()
                if found.get("adapter"):
                    adapters.add(found["adapter"])
                name = f"{found['module']}.{found['rest']}" if "rest" in found else found["module"]
                return AdapterTensor(key=key, role=role, name=name, shape=shape)
        if _OF_PEFT.search(rest):
            raise UnsupportedError(f"{self.path}: tensor {key!r} is of a kind that cannot be merged")
        return AdapterTensor(key=key, role="plain", name=rest, shape=shape)
