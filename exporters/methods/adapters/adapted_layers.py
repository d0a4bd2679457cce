"""The linear layers that run-time adapters may change: found in the model, and described for the runtime."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable

from torch import nn

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.artifact.manifest import AdapterTarget
from enginewright.runtime.errors import ExportError

_LAYER = re.compile(
    r"(?P<before>\D+\.)(?P<layer>\d+)(?P<after>(?:\.[^.]*[^.\d][^.]*)+)"
)  # one number alone among the parts
ALL = "all"


def find_targets(checkpoint: Checkpoint, chosen: str) -> dict[str, AdapterTarget]:
    """Return the targets by name: layers whose names differ in their number alone and that have one shape.

    chosen: endings of the layers' names, joined by +, or "all".

    Raises:
        ExportError: an ending matches no linear layer of the blocks.
    """
    model = build_skeleton(copy.deepcopy(checkpoint.config), attention="eager", max_context=1).model
    found: dict[tuple[str, int, int], list[int]] = {}
    for name, module in model.named_modules():
        match = _LAYER.fullmatch(name)
        if isinstance(module, nn.Linear) and match is not None:
            pattern = f"{match['before']}{{}}{match['after']}"
            found.setdefault((pattern, module.in_features, module.out_features), []).append(int(match["layer"]))
    _check(chosen, {pattern for pattern, _, _ in found}, checkpoint.config.model_type)
    targets: dict[str, AdapterTarget] = {}
    for (pattern, inputs, outputs), layers in found.items():
        if is_chosen(pattern, chosen):
            name = _free_name(pattern, targets)
            targets[name] = AdapterTarget(module=pattern, layers=tuple(layers), inputs=inputs, outputs=outputs)
    return targets


def is_chosen(module: str, chosen: str) -> bool:
    """Whether a module with this name is a layer in a numbered block, and one of the chosen.

    chosen: endings of layers' names, joined by +, or "all".
    """
    return _LAYER.fullmatch(module.replace("{}", "0")) is not None and (
        chosen == ALL or any(module.endswith(f".{ending}") for ending in chosen.split("+"))
    )


def _check(chosen: str, patterns: set[str], family: str) -> None:
    """Raise ExportError unless each of the chosen endings is that of a layer."""
    if not patterns:
        raise ExportError(f"adapters: {family}: got no linear layer in numbered blocks, expected one")
    for ending in () if chosen == ALL else chosen.split("+"):
        if not ending or not any(pattern.endswith(f".{ending}") for pattern in patterns):
            names = ", ".join(sorted({pattern.rpartition(".")[2] for pattern in patterns}))
            raise ExportError(f"adapters: targets: got {ending!r}, expected {ALL} or layers among {names}, joined by +")


def _free_name(pattern: str, taken: Iterable[str]) -> str:
    """The last part of the layer's name, with a number where another target has it."""
    base, used = pattern.rpartition(".")[2], set(taken)
    return next(
        name for number in range(1, len(used) + 2) if (name := base if number == 1 else f"{base}-{number}") not in used
    )
