"""Places in the model that the tensors of an adapter belong to, found by the names of the model or of its checkpoint.

An adapter has the names of the model that it was trained on. transformers may have renamed modules since, or put several into
one parameter; its own table of conversions says which.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.conversions import Conversion, find_conversions
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.artifact.adapters.settings import AdapterConfig
from enginewright.runtime.errors import ExportError, UnsupportedError

_WRAPPED = ".base_layer"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The parameter, or the part of one, that a pair of factors changes; `Places` creates it.

    parameter: its name in the model.
    kind: "layer" for the weight of a linear layer, "embedding", "parameter" for one without a layer of its own, or
        "converted" for a tensor that the parameter is made of.
    shape: of the parameter.
    transposed: whether the parameter is stored as [in, out], and not as [out, in]; of experts, each of its matrices.
    bias: the name of the layer's bias; empty where it has none.
    scaled_as: the name that the patterns of ranks and alphas are compared with.
    source: the name of the tensor of a converted parameter; else empty.
    """

    parameter: str
    kind: str
    shape: tuple[int, ...]
    transposed: bool = False
    bias: str = ""
    scaled_as: str
    source: str = ""


def _unwrap(module: str) -> tuple[str, int]:
    """The name of a module without the wrappers that PEFT adds, and how many those are."""
    depth = 0
    while module.endswith(_WRAPPED):
        module, depth = module.removesuffix(_WRAPPED), depth + 1
    return module, depth


class Places:
    """The places of one adapter in one model; `transform_weights` creates it.

    conversions: of those of the adapter's names that the model does not have, by name.
    tied: for each parameter, all names that it has.
    """

    def __init__(self, root: Path, checkpoint: Checkpoint, settings: AdapterConfig) -> None:
        config = copy.deepcopy(checkpoint.config)
        self._model = build_skeleton(config, attention="eager", max_context=1).model
        self._root, self._checkpoint, self._settings = root, checkpoint, settings
        self._modules = dict(self._model.named_modules(remove_duplicate=False))
        self._parameters = dict(self._model.named_parameters(remove_duplicate=False))
        by_identity: dict[int, list[str]] = {}
        for name, parameter in self._parameters.items():
            by_identity.setdefault(id(parameter), []).append(name)
        self.tied = {name: by_identity[id(parameter)] for name, parameter in self._parameters.items()}
        self.conversions: dict[str, Conversion] = {}

    def learn(self, modules: Iterable[str], parameters: Iterable[str]) -> None:
        """Look up the names of the adapter that the model does not have, all at once."""
        unknown = [f"{name}.weight" for name in modules if _unwrap(name)[0] not in self._modules]
        unknown += [name for name in parameters if name not in self._parameters]
        self.conversions = find_conversions(self._checkpoint, self._model, unknown) if unknown else {}

    def modules(self) -> Iterable[str]:
        """The names of the model's modules, in its order."""
        return self._modules

    def parameter(self, name: str) -> str:
        """The model's name of the parameter that the adapter calls `name`."""
        if name in self._parameters:
            return name
        found = self.conversions.get(name)
        if found is None:
            raise self._not_there(name)
        if found.converts:
            raise UnsupportedError(
                f"{self._root}: holds {name!r} whole, which is one part of {found.target!r} in the model; merge it with "
                "PEFT, and build the result"
            )
        return found.target

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The shape of a parameter of the model."""
        return tuple(self._parameters[parameter].shape)

    def is_vocabulary(self, parameter: str) -> bool:
        """Whether each row of the parameter belongs to a token."""
        model: Any = self._model
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        return any(getattr(end, "weight", None) is self._parameters[parameter] for end in ends)

    def is_input(self, parameter: str) -> bool:
        """Whether the parameter is that of the input embedding, under the embedding's own name."""
        owner = self._modules[parameter.rpartition(".")[0]]
        return owner is self._model.get_input_embeddings()

    def pair(self, module: str) -> Place:
        """The place of a pair lora_A and lora_B.

        Raises:
            ExportError: the model has no such module.
            UnsupportedError: PEFT has no such pair for the module either.
        """
        owner, depth = _unwrap(module)
        if owner not in self._modules:
            found = self.conversions.get(f"{module}.weight")
            if found is None:
                raise self._not_there(module)
            if found.converts:
                return self._place(found.target, "converted", module, source=f"{module}.weight")
            owner = found.target.rpartition(".")[0]
        layer = self._modules[owner]
        if isinstance(layer, nn.Linear | Conv1D) and depth == 0:
            bias = f"{owner}.bias" if f"{owner}.bias" in self._parameters else ""
            return self._place(f"{owner}.weight", "layer", module, transposed=isinstance(layer, Conv1D), bias=bias)
        return self._bare_parameter(owner, layer, depth, module)

    def embedding(self, module: str) -> Place:
        """The place of a pair lora_embedding_A and lora_embedding_B."""
        name = self.parameter(f"{module}.weight")
        if not isinstance(self._modules[name.rpartition(".")[0]], nn.Embedding):
            raise ExportError(
                f"{self._root}: {module!r} is no embedding in the model; the adapter is for another model"
            )
        return self._place(name, "embedding", module, transposed=True)

    def _bare_parameter(self, owner: str, layer: nn.Module, depth: int, module: str) -> Place:
        """The place of a pair of a parameter without a layer of its own.

        PEFT wraps a module once for each parameter that is adapted, the first one innermost.
        """
        own = {name: parameter for name, parameter in layer.named_parameters(recurse=False)}
        chosen = [name for name in own if self._is_chosen(f"{owner}.{name}")]
        if not chosen and "weight" in own and not isinstance(layer, nn.Embedding):  # once a linear layer
            chosen = ["weight"]
        if depth >= len(chosen):
            raise UnsupportedError(
                f"{self._root}: adapts {module!r}, a {type(layer).__name__}, expected a linear layer, an embedding, or a "
                "parameter that target_parameters names"
            )
        name = f"{owner}.{chosen[-1 - depth]}"
        shape = self.shape(name)
        if len(shape) not in (2, 3):
            raise UnsupportedError(
                f"{self._root}: adapts {name!r} {list(shape)}, expected a matrix, or one for each expert"
            )
        transposed = len(shape) == 3 and bool(getattr(layer, "is_transposed", False))
        as_named = module if chosen == ["weight"] else name
        return self._place(name, "parameter", as_named, transposed=transposed)

    def _is_chosen(self, parameter: str) -> bool:
        return any(f".{parameter}".endswith(f".{ending}") for ending in self._settings.parameters)

    def _place(
        self, parameter: str, kind: str, scaled_as: str, *, transposed: bool = False, bias: str = "", source: str = ""
    ) -> Place:
        shape = self.shape(parameter)
        return Place(
            parameter=parameter,
            kind=kind,
            shape=shape,
            transposed=transposed,
            bias=bias,
            scaled_as=scaled_as,
            source=source,
        )

    def _not_there(self, name: str) -> ExportError:
        return ExportError(f"{self._root}: adapts {name!r}, which the model does not have; it is for another model")
