"""The factors of an adapter as its linear layers have them, for methods that make one adapter of others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from enginewright.exporters.methods.lora.adapter import Adapter, open_adapter
from enginewright.exporters.methods.lora.merge import check_factors
from enginewright.exporters.methods.lora.pairs import Pair
from enginewright.exporters.methods.lora.places import Place
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.runtime.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class LayerFactors:
    """The factors of one linear layer, whose weight W [o, n] becomes W + B A; `read_factors` creates it.

    module: the layer's name in the model.
    rank: r.
    shape: o, n.
    stored: the type of B in the adapter's file, such as torch.bfloat16.
    """

    module: str
    rank: int
    shape: tuple[int, int]
    stored: torch.dtype
    _adapter: Adapter
    _pair: Pair
    _scaling: float

    def load(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B [o, r], with the adapter's scaling multiplied in, and A [r, n], both float32."""
        file = self._adapter.file
        return file.read(self._pair.b.key) * self._scaling, file.read(self._pair.a.key)


def read_factors(root: Path, checkpoint: Checkpoint) -> dict[str, LayerFactors]:
    """Return the factors of the adapter in the directory `root` by the layer's name in the model, in the model's order.

    Raises:
        ExportError: a file is missing or broken, or the adapter does not fit the model.
        UnsupportedError: the adapter changes more than W by B A, or something that is no linear layer.
    """
    adapter = open_adapter(root, checkpoint)
    _check_settings(adapter)
    found: dict[str, LayerFactors] = {}
    for pair in adapter.pairs:
        place = adapter.places.embedding(pair.module) if pair.is_embedding else adapter.places.pair(pair.module)
        check_factors(adapter, pair, place)
        _check_layer(adapter, pair, place)
        module = place.parameter.removesuffix(".weight")
        found[module] = LayerFactors(
            module=module,
            rank=pair.a.shape[0],
            shape=(pair.b.shape[0], pair.a.shape[1]),
            stored=adapter.file.dtype(pair.b.key),
            _adapter=adapter,
            _pair=pair,
            _scaling=adapter.settings.scaling(place.scaled_as),
        )
    if entry := next(adapter.entries("plain", "saved", "base", "tokens"), None):
        raise UnsupportedError(
            f"{adapter.file.path}: holds {entry.key!r}, expected lora_A and lora_B alone; merge this adapter into the model "
            "first, or train it without"
        )
    return {module: found[module] for module in adapter.places.modules() if module in found}


def _check_settings(adapter: Adapter) -> None:
    """Raise UnsupportedError where the settings say that the adapter is more than pairs of factors."""
    settings, path = adapter.settings, adapter.settings.path
    reasons = {
        "use_dora": (settings.dora, "each row of the merged weight is scaled, which no sum of factors does"),
        "lora_bias": (settings.biases, "it adds to the model's biases"),
        "init_lora_weights": (settings.residual, "it takes a part of each base weight away first"),
        "modules_to_save": (settings.saved, "it holds modules whole"),
        "trainable_token_indices": (settings.tokens, "it holds rows of embeddings"),
    }
    for key, (value, reason) in reasons.items():
        if value:
            raise UnsupportedError(
                f"{path}: got {key}, expected an adapter of plain factors alone: {reason}; merge this one into the model "
                "first, or train it without"
            )


def _check_layer(adapter: Adapter, pair: Pair, place: Place) -> None:
    """Raise UnsupportedError unless the pair is of a linear layer whose weight is not tied."""
    where = f"{adapter.root}: adapts {pair.module!r}"
    if len(adapter.places.tied.get(place.parameter, ())) > 1:
        raise UnsupportedError(f"{where}, whose weight is tied to another; train the adapter without it")
    if place.kind != "layer":
        raise UnsupportedError(
            f"{where}, which is no linear layer of its own in the model; train the adapter without it"
        )
