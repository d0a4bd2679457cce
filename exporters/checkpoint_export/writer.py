"""Writes a checkpoint with methods applied, for other servers.

Tensors keep the names, types and safetensors files that they have in the source. Tensors that no method changed are copied
byte by byte. A source of another format is written to files of our own; of its types, those that safetensors does not have
become float32.
"""

from __future__ import annotations

import fnmatch
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from enginewright.exporters.checkpoint_export import compressed_tensors, modelopt
from enginewright.exporters.checkpoint_export.quantized_linear import (
    CheckpointFormat,
    Description,
    LeftOut,
    QuantizedLinear,
    find_groups,
    to_tensor,
)
from enginewright.exporters.checkpoint_export.safetensors_writer import (
    BYTES,
    SINGLE_BYTES,
    TensorEntry,
    TensorQueue,
    write_safetensors,
)
from enginewright.exporters.methods.registry import (
    Applied,
    check_model,
    check_together,
    code_forms,
    find_method,
    find_options,
    transform_weights,
)
from enginewright.exporters.source.checkpoint import (
    CONFIG,
    GENERATION,
    TOKENIZER_FILES,
    Checkpoint,
    open_checkpoint,
)
from enginewright.exporters.source.formats.safetensors import DTYPES, INDEX, NAMED, WEIGHTS
from enginewright.exporters.source.json_file import parse_json
from enginewright.exporters.source.parameters import bind_parameters, source_names
from enginewright.exporters.source.quantized.exported_bits import CODE_BITS, RECORD
from enginewright.exporters.source.skeleton import load_skeleton
from enginewright.exporters.source.tensor_source import StoredTensor
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.artifact.files.real_path import real_path
from enginewright.runtime.artifact.version import package_version
from enginewright.runtime.errors import ExportError, UnsupportedError

FORMATS: dict[str, CheckpointFormat] = {"compressed-tensors": compressed_tensors, "modelopt": modelopt}
_FILE_BYTES = 4 << 30
HALVES = {"BF16": "bfloat16", "F16": "float16"}
COPIED = (GENERATION, *TOKENIZER_FILES[""], "tokenizer*", "*.jinja", "LICENSE*", "NOTICE*")


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """Everything that changes; `_collect_outputs` creates it.

    merged: changed weights by the name of the source tensor.
    quantized: quantised weights by the name of the source tensor.
    left_out: modules that stay as they are.
    unties: whether names of one parameter of the model have different weights from now on.
    """

    merged: dict[str, Weight]
    quantized: dict[str, QuantizedLinear]
    left_out: LeftOut
    unties: bool


def export_checkpoint(checkpoint: Checkpoint, root: Path, applied: tuple[Applied, ...], format_name: str) -> int:
    """Write `checkpoint` with the methods `applied` under `root`, an empty directory; return the bytes of all tensors.

    Memory holds one tensor at a time. Everything that can be refused early is refused before anything is written. Parts of
    files that are neither used nor copied are named on standard error.

    Raises:
        ExportError, UnsupportedError: with the reason.
    """
    check_methods(applied)
    check_model(applied, checkpoint)
    chosen = FORMATS[format_name]
    for form in code_forms(applied):
        chosen.check_form(form)
    outputs = _collect_outputs(checkpoint, applied)
    producer = {"name": "enginewright", "version": package_version()}
    linears = list(outputs.quantized.values())
    described = chosen.describe(linears, outputs.left_out, producer) if linears else None
    size = _write_tensors(checkpoint, root, outputs, chosen)
    _write_json(checkpoint, root, described, unties=outputs.unties)
    kept = {path.name for path in root.iterdir() if not (checkpoint.is_text_part and path.suffix == ".safetensors")}
    checkpoint.unused.settle(strict=False, kept=kept)
    record: dict[str, Any] = {
        "producer": producer,
        "source": checkpoint.name,
        "applied": [method.describe() for method in applied],
    }
    if widened := {linear.module: linear.rows.bits for linear in linears if linear.rows.bits < linear.bits}:
        record[CODE_BITS] = widened
    _save(root / RECORD, record)
    return size


def check_methods(applied: tuple[Applied, ...]) -> None:
    """Raise unless `applied` has at least one method, all its methods change weights, and none excludes another."""
    known = ", ".join(name for name, method in find_options().items() if method.transform_weights is not None)
    if not applied:
        raise ExportError(f"apply: got no method, expected at least one of {known}")
    for method in applied:
        if find_method(method.name).transform_weights is None:
            raise UnsupportedError(
                f"apply: {method.name} changes engines, not weights, so a checkpoint cannot hold it; expected one of "
                f"{known}; `enginewright build` writes engines with it"
            )
    check_together(applied)


def open_source(model: str, output: Path) -> Checkpoint:
    """Open the checkpoint `model`; ExportError if `output` is the same directory."""
    checkpoint = open_checkpoint(model)
    if real_path(output) == real_path(checkpoint.path):
        raise ExportError(f"{output}: is the checkpoint that is read; choose another --output")
    return checkpoint


def _collect_outputs(checkpoint: Checkpoint, applied: tuple[Applied, ...]) -> _Outputs:
    """Apply the methods to recipes of the weights, and refuse changes that a checkpoint cannot hold."""
    model = load_skeleton(checkpoint, attention="eager", max_context=1).model
    before = bind_parameters(checkpoint, model)
    after = transform_weights(applied, before, checkpoint)
    names = source_names(checkpoint, model)
    changed = {name: weight for name, weight in after.items() if weight is not before[name]}
    for name in changed:
        _check_own(checkpoint, names, name, after)
    rows = {name: weight.quantized for name, weight in changed.items() if weight.quantized is not None}
    groups = find_groups(((after[name].shape[0], after[name].shape[1]), found) for name, found in rows.items())
    quantized = {}
    for name, found in rows.items():
        module = _check_linear(model, names, name, after[name])
        quantized[names[name]] = QuantizedLinear(
            module=module,
            shape=(after[name].shape[0], after[name].shape[1]),
            dtype=_float_type(checkpoint.tensors[names[name]]),
            rows=found,
            group_size=found.group_size if found.group_size in groups else None,
        )
    return _Outputs(
        merged={names[name]: weight for name, weight in changed.items() if weight.quantized is None},
        quantized=quantized,
        left_out=_left_out(model, names, set(quantized)),
        unties=_unties(model, after),
    )


def _unties(model: PreTrainedModel, after: dict[str, Weight]) -> bool:
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return any(after[first.setdefault(id(parameter), name)] is not after[name] for name, parameter in named)


def _check_own(checkpoint: Checkpoint, names: dict[str, str], name: str, after: dict[str, Weight]) -> None:
    """Raise UnsupportedError unless the changed parameter `name` has a tensor of its own.

    Tied parameters may share it when they are changed in the same way.
    """
    if name not in names:
        raise UnsupportedError(
            f"{checkpoint.path}: {name!r} is changed, but the checkpoint has it in several tensors or in a part of one, so it "
            "cannot be written back; leave it as it is"
        )
    if tied := [x for x, source in names.items() if source == names[name] and after[x] is not after[name]]:
        raise UnsupportedError(
            f"{checkpoint.path}: {name!r} is changed, and tied to {tied[0]!r}, which would change too; leave it as it is"
        )


def _check_linear(model: PreTrainedModel, names: dict[str, str], name: str, weight: Weight) -> str:
    """Return the checkpoint's name of the Linear layer whose weight is the parameter `name`; UnsupportedError if it is none."""
    owner, source = name.removesuffix(".weight"), names[name]
    right = (
        name.endswith(".weight") and source.endswith(".weight") and type(model.get_submodule(owner)) is torch.nn.Linear
    )
    if not right or weight.form is None or weight.form[2] != 1:
        raise UnsupportedError(
            f"{name!r} is quantised, expected the weight of a Linear layer; a checkpoint holds no other"
        )
    if weight.quantized is not None and weight.quantized.minima is not None:
        raise UnsupportedError(
            f"{name!r} got codes with a minimum a group, expected zero points or none; no format of checkpoints here holds it"
        )
    return source.removesuffix(".weight")


def _left_out(model: PreTrainedModel, names: dict[str, str], quantized: set[str]) -> LeftOut:
    """The modules that servers may take for Linear layers: every matrix but the embeddings, under both of its names."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    modules: dict[str, None] = {}  # in order
    experts = False
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, source = name.removesuffix(".weight"), names.get(name, name)
        experts = experts or parameter.ndim == 3
        is_matrix = owner in linears or (parameter.ndim == 2 and id(parameter) not in embeddings)
        if is_matrix and name.endswith(".weight") and source not in quantized:
            modules.update(dict.fromkeys((_module(source, owner), owner)))
    return LeftOut(modules=tuple(modules), experts=experts)


def _module(source: str, owner: str) -> str:
    """The module of the tensor `source`; a tied output projection reads the embedding's tensor, but has its own name."""
    return source.removesuffix(".weight") if source.rpartition(".")[0].endswith(owner.rpartition(".")[2]) else owner


def _write_tensors(checkpoint: Checkpoint, root: Path, outputs: _Outputs, chosen: CheckpointFormat) -> int:
    files = _place_tensors(checkpoint)
    total, places, types = 0, dict[str, str](), dict[str, str]()
    with tqdm(total=len(checkpoint.tensors), unit="tensor", desc="writing weights", disable=None, leave=False) as bar:
        for file, names in files.items():
            queue = TensorQueue(root)
            try:
                entries = _queue_quantized(outputs, chosen, names, queue, bar)
                entries += _stream_others(checkpoint, outputs, names)
                advance = partial(_advance, bar, set(names) - set(outputs.quantized))
                total += write_safetensors(root / file, entries, advance)
            finally:
                queue.close()
            places.update({entry.name: file for entry in entries})
            types.update({entry.name: entry.dtype for entry in entries})
    if list(files) != [WEIGHTS]:
        _save(root / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    _note_wide_scales([x for x in outputs.quantized.values() if types[f"{x.module}.weight_scale"] != x.dtype])
    return total


def _advance(bar: tqdm[Any], names: set[str], entry: TensorEntry) -> None:
    if entry.name in names:
        bar.update()


def _queue_quantized(
    outputs: _Outputs, chosen: CheckpointFormat, names: Iterable[str], queue: TensorQueue, bar: tqdm[Any]
) -> list[TensorEntry]:
    """The tensors of each quantised weight, which is computed once; only then is the type of its scales known."""
    entries = []
    for linear in [outputs.quantized[name] for name in names if name in outputs.quantized]:
        for part, (dtype, values) in chosen.store(linear).items():
            entries.append(queue.add(f"{linear.module}.{part}", dtype, values))
        bar.update()
    return entries


def _stream_others(checkpoint: Checkpoint, outputs: _Outputs, names: Iterable[str]) -> list[TensorEntry]:
    """The tensors that are copied or merged, computed while they are written."""
    entries = []
    for name in [name for name in names if name not in outputs.quantized]:
        stored = checkpoint.tensors[name]
        dtype, size = stored.dtype, stored.size
        chunks: Callable[[], Iterable[bytes]] = partial(checkpoint.content, name)
        if name in outputs.merged or dtype not in (*BYTES, *SINGLE_BYTES):
            dtype = _float_type(stored)
            size = math.prod(stored.shape) * BYTES[dtype]
            values = outputs.merged[name].load if name in outputs.merged else partial(_read, checkpoint, name)
            chunks = partial(_round, values, dtype, name)
        entries.append(TensorEntry(name=name, dtype=dtype, shape=stored.shape, size=size, chunks=chunks))
    return entries


def _place_tensors(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The names of the tensors of each file to write: the source's files, or files of at most _FILE_BYTES of ours."""
    files: dict[str, list[str]] = {}
    if all(stored.file.suffix == ".safetensors" for stored in checkpoint.tensors.values()):
        for name, stored in checkpoint.tensors.items():
            files.setdefault(stored.file.name, []).append(name)
        return files
    shards: list[list[str]] = [[]]
    filled = 0
    for name, stored in checkpoint.tensors.items():
        size = math.prod(stored.shape) * 4
        if shards[-1] and filled + size > _FILE_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    count = len(shards)
    numbered = (f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1))
    return dict(zip((WEIGHTS,) if count == 1 else numbered, shards, strict=True))


def _float_type(stored: StoredTensor) -> str:
    """The type of numbers that a changed tensor gets: its own, or float32 where safetensors does not have that."""
    return stored.dtype if stored.dtype in DTYPES else "F32"


def _read(checkpoint: Checkpoint, name: str) -> np.ndarray:
    return checkpoint.read(name).numpy()


def _round(load: Callable[[], np.ndarray], dtype: str, name: str) -> list[bytes]:
    return [to_tensor(load(), dtype, name)[1].tobytes()]


def _note_wide_scales(wide: list[QuantizedLinear]) -> None:
    """Tell the user which scales servers will round."""
    for dtype in sorted({HALVES[linear.dtype] for linear in wide if linear.dtype in HALVES}):
        print(
            f"scales of {len(wide)} quantised weights, the first of them {wide[0].module!r}, are stored as float32, since "
            f"{dtype} would change them; servers whose kernels compute in {dtype} will round them. A method with the option "
            f"scale_type chooses codes for scales of that type: scale_type={dtype}",
            file=sys.stderr,
        )


def _write_json(checkpoint: Checkpoint, root: Path, described: Description | None, *, unties: bool) -> None:
    """Write config.json and the other files of a checkpoint that are not tensors."""
    text = checkpoint.config_content()
    config = parse_json(text, checkpoint.path / CONFIG)
    changed = {key: value for key, value in config.items() if key != NAMED}  # the index has its usual name
    if unties:
        changed["tie_word_embeddings"] = False
    if described is not None:
        changed["quantization_config"] = described.quantization_config
        for name, content in described.files.items():
            _save(root / name, content)
    if changed == config:
        (root / CONFIG).write_bytes(text)
    else:
        _save(root / CONFIG, changed)
    for name in checkpoint.file_names():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in COPIED):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(checkpoint.read_file(name))


def _save(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
