"""Parameters that an adapter holds whole, and rows of embeddings: they take the place of the model's own."""

from __future__ import annotations

from functools import partial

import torch

from enginewright.exporters.methods.lora.adapter import Adapter
from enginewright.exporters.methods.lora.adapter_file import AdapterTensor
from enginewright.exporters.methods.lora.changes import Changes
from enginewright.runtime.errors import ExportError


def take_whole(adapter: Adapter, changes: Changes) -> None:
    """Replace the parameters that the adapter holds whole, unless the model has the same values.

    PEFT saves the weight of an embedding with the adapter, and of what is tied to it, because training may have changed it; that
    one replaces all that is tied to it. A module of `modules_to_save` is a copy, which is tied to nothing.
    """
    held: set[str] = set()
    for entry in adapter.entries("plain", "saved", "base"):
        name = adapter.places.parameter(entry.name)
        adapter.check_shape(entry, entry.shape, name)
        copied = entry.role == "saved" or (entry.role == "plain" and adapter.settings.is_saved(_owner(entry.name)))
        names = [name] if copied else adapter.places.tied[name]
        held.update(names)
        read = partial(adapter.file.read, entry.key)
        if not torch.equal(torch.from_numpy(changes.weights[name].load()), read()):
            for each in names:
                changes.replace(each, entry.name, read)
    missing = [name for name in adapter.places.tied if name not in held and adapter.settings.is_saved(_owner(name))]
    if missing:
        raise ExportError(
            f"{adapter.file.path}: lacks {missing[0]!r}, which modules_to_save of {adapter.settings.path.name} names; save the "
            "adapter anew"
        )


def take_tokens(adapter: Adapter, changes: Changes) -> None:
    """Replace the rows of embeddings that the adapter holds; those of the input embedding in what is tied to it, too."""
    places, settings = adapter.places, adapter.settings
    found = {places.parameter(f"{entry.name}.weight"): entry for entry in adapter.entries("tokens")}
    taken: set[str] = set()
    for name, entry in found.items():
        rows = settings.token_rows(entry.name, is_input=places.is_input(name))
        if rows is None:
            raise ExportError(
                f"{adapter.file.path}: holds rows of {entry.name!r}, which trainable_token_indices does not name"
            )
        _check_rows(adapter, entry, rows, name)
        tied = [each for each in places.tied[name] if each not in found] if places.is_input(name) else []
        for each in (name, *tied):
            changes.change(each, entry.name, partial(_with_rows, adapter, entry, rows), additive=False)
            taken.add(f".{_owner(each)}")
    lacking = [
        ending for ending in settings.tokens if not any(each.endswith(f".{ending}" if ending else "") for each in taken)
    ]
    if lacking:
        raise ExportError(
            f"{adapter.file.path}: lacks the rows of {lacking[0] or 'the embedding'!r} that trainable_token_indices of "
            f"{settings.path.name} names; save the adapter anew"
        )


def _check_rows(adapter: Adapter, entry: AdapterTensor, rows: tuple[int, ...], name: str) -> None:
    shape = adapter.places.shape(name)
    if entry.shape != (len(rows), *shape[1:]):
        raise ExportError(
            f"{adapter.root}: rows of {entry.name!r} got {list(entry.shape)}, expected {[len(rows), *shape[1:]]}; the adapter "
            "is for another model"
        )
    if rows and max(rows) >= shape[0]:
        adapter.check_shape(entry, (max(rows) + 1, *shape[1:]), name)


def _with_rows(adapter: Adapter, entry: AdapterTensor, rows: tuple[int, ...], weight: torch.Tensor) -> torch.Tensor:
    return weight.index_copy(0, torch.tensor(rows, dtype=torch.int64), adapter.file.read(entry.key))


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]
