"""The tensors of a multimodal checkpoint's text part, by the names that they have in the checkpoint of a text model.

It is a source over another one of any format. Tensors that are stored as the multimodal class has them keep their bytes and
codes. Where that class converts what is stored, such as experts that are transposed, the tensor is made when it is read.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from enginewright.exporters.source.formats.safetensors import DTYPES
from enginewright.exporters.source.multimodal.whole_model import WholeModel
from enginewright.exporters.source.tensor_matching import Matching, TensorGroup, match_tensors, unexpected_tensors
from enginewright.exporters.source.tensor_source import StoredTensor, TensorSource
from enginewright.exporters.source.unused import UnusedParts
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import UnsupportedError

_OF_PROCESSORS = "*processor_config.json"
_CONVERTED = "transformers converts it for the text part of a multimodal model"
_BY_DESIGN = "an engine has the text part of a multimodal model alone"


class _Origin(NamedTuple):
    """What a tensor of the text part is made of: a group, its first tensor of the whole model, and the tensor's shape."""

    target: str
    group: TensorGroup
    shape: tuple[int, ...]


class TextSource:
    """The text part of an opened source; `open_checkpoint` creates it."""

    def __init__(self, inner: TensorSource, whole: WholeModel) -> None:
        self._inner, self._whole = inner, whole

    @property
    def path(self) -> Path:
        """The directory or the file of the whole checkpoint."""
        return self._inner.path

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors of the text part.

        Raises:
            ExportError: a file is missing or damaged, or stored tensors do not fit each other.
            UnsupportedError: there is no tensor of the text part.
        """
        return self._described

    @property
    def missing(self) -> dict[str, Path]:
        """The tensors of the text part that are missing, or of which a part is."""
        found: dict[str, Path] = {}
        for target, group in self._matching.groups.items():
            if target in self._whole.names and group.missing:
                found[self._whole.names[target]] = next(iter(group.missing.values()))
        return found

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return a tensor, or one slice of it, as float32."""
        target, group, _ = self._origins[name]
        if group.converter is None:
            return self._inner.read(group.tensors[0][1], part)
        if part is None:
            return self._make(target, group, name)
        if group.is_by_slice:
            return self._make(target, group, name, part)
        if experts := group.experts(self._described[name].shape[0]):
            return self._make(target, experts[part], name)
        return self._make(target, group, name)[part : part + 1].clone()

    def content(self, name: str) -> Iterator[bytes]:
        """Yield a tensor's bytes, those of a converted one in the type that its parts are stored in."""
        group = self._origins[name].group
        if group.converter is None:
            yield from self._inner.content(group.tensors[0][1])
            return
        made = self.read(name).to(DTYPES[self._described[name].dtype])
        for rows in made:  # one expert at a time, so that the bytes need no second copy of the whole
            yield rows.contiguous().view(torch.uint8).numpy().tobytes()

    def codes(self, name: str, part: int | None = None) -> QuantizedRows | None:
        """Return codes and scales of a matrix that is stored as such; None for any other tensor, and for converted ones."""
        group = self._origins[name].group
        return self._inner.codes(group.tensors[0][1], part) if group.converter is None else None

    def file_names(self) -> tuple[str, ...]:
        """Names of the files of the whole checkpoint besides the tensors; config.json is that of the whole model."""
        return self._inner.file_names()

    def read_file(self, name: str) -> bytes:
        """The content of a file of the whole checkpoint."""
        return self._inner.read_file(name)

    def unused(self) -> Iterator[UnusedParts]:
        """What the source itself leaves out, the other parts of the model, and the files of their processors."""
        yield from self._inner.unused()
        for file, names in sorted(self._left_out().items()):
            yield UnusedParts(file=file, names=tuple(names), reason=_BY_DESIGN, by_design=True)
        reason = f"no parameter or buffer of {type(self._whole.model).__name__} is made of it"
        for file, found in unexpected_tensors(self._inner, self._whole.model, self._matching).items():
            yield UnusedParts(file=file, names=found, reason=reason)
        for name in sorted(fnmatch.filter(self._inner.file_names(), _OF_PROCESSORS)):
            yield UnusedParts(file=name, names=("every setting",), reason=_BY_DESIGN, by_design=True)

    @functools.cached_property
    def _matching(self) -> Matching:
        return match_tensors(self._inner, self._whole.model)

    @functools.cached_property
    def _origins(self) -> dict[str, _Origin]:
        """What each tensor of the text part is made of."""
        found: dict[str, _Origin] = {}
        for target, group in self._matching.groups.items():
            if target not in self._whole.names or not group.whole:
                continue
            stored = self._inner.tensors[group.tensors[0][1]].shape
            made = {target: stored}
            if group.converter is not None:
                made = group.shapes(self._inner, self._whole.model, target)
            for name, shape in made.items():
                found[self._whole.names[name]] = _Origin(target, group.reduced(stored, shape), shape)
        return found

    @functools.cached_property
    def _described(self) -> dict[str, StoredTensor]:
        found: dict[str, StoredTensor] = {}
        for name, origin in self._origins.items():
            stored = [self._inner.tensors[each] for _, each in origin.group.tensors]
            found[name] = stored[0] if origin.group.converter is None else _describe_made(stored, origin.shape)
        if not found:
            raise UnsupportedError(
                f"{self.path}: got no tensor of the text part ({self._whole.place}), expected a checkpoint of a "
                f"{self._whole.model.config.model_type} model with it"
            )
        return found

    def _make(self, target: str, group: TensorGroup, name: str, part: int | None = None) -> torch.Tensor:
        made = group.make(self._whole.model, target, functools.partial(self._inner.read, part=part))
        return next(tensor for each, tensor in made.items() if self._whole.names[each] == name).contiguous()

    def _left_out(self) -> dict[str, list[str]]:
        """The tensors of other parts by file: the name and the count of each part, such as "vision_tower.* (437 tensors)"."""
        parts: dict[str, list[str]] = {}
        for target, group in self._matching.groups.items():
            if target not in self._whole.names and group.tensors:
                parts.setdefault(_part_of(target, self._whole.place), []).extend(name for _, name in group.tensors)
        found: dict[str, list[str]] = {}
        for _, names in sorted(parts.items()):
            files = Counter(self._inner.tensors[name].file.name for name in names)
            label = _shared_name(names)
            for file, count in files.items():
                found.setdefault(file, []).append(label if len(names) == 1 else f"{label} ({count} tensors)")
        return found


def _describe_made(stored: list[StoredTensor], shape: tuple[int, ...]) -> StoredTensor:
    """Describe a tensor that is made of `stored` ones: it has their type, or float32 where they have several or codes."""
    if refused := [each for each in stored if each.refusal]:
        return replace(refused[0], shape=shape)
    types = {each.dtype for each in stored}
    dtype = types.pop() if len(types) == 1 and types <= DTYPES.keys() else "F32"
    size, codes = (
        math.prod(shape) * DTYPES[dtype].itemsize,
        "+".join(dict.fromkeys(each.codes for each in stored if each.codes)),
    )
    return StoredTensor(
        file=stored[0].file, dtype=dtype, shape=shape, size=size, codes=codes, restored=_CONVERTED if codes else ""
    )


def _part_of(target: str, place: str) -> str:
    """The part of the model that the tensor `target` belongs to: the module next to the text part, or next to one around it."""
    shared = 0
    path, own = target.split("."), place.split(".")
    while shared < min(len(path), len(own)) and path[shared] == own[shared]:
        shared += 1
    return ".".join(path[: shared + 1])


def _shared_name(names: Iterable[str]) -> str:
    """The one name, or the modules that all names have at their start, and a star."""
    found = [name.split(".") for name in names]
    if len(found) == 1:
        return ".".join(found[0])
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == found[0][shared] for path in found):
        shared += 1
    return ".".join([*found[0][:shared], "*"])
