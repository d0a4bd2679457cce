"""Writes a model folder of a Triton model repository: config.pbtxt, model.py, and the engine's files next to it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import BuildError
from enginewright.runtime.triton.ports import BACKEND, ENGINE, INPUTS, LOAD_OPTIONS, MAX_QUEUE, OUTPUTS, ServedPort

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CPU = "onnxruntime"
_MARK = f"1/{ENGINE}/{directory.MANIFEST}"

_MODEL = '''"""Serves the engine next to this file; written by `enginewright triton`."""

from enginewright.runtime.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, kw_only=True)
class TritonModel:
    """The settings of a served model; created by the command `triton`.

    name: the name of the model and its folder; None: the engine's name.
    instances: the number of processes that serve the model, each with its own batch and cache.
    max_queue: the most requests that may wait for a row in each instance.
    threads, max_batch, cache_tokens, prefill_chunk, backend: arguments of `load` for each instance; None: `load`'s default.
        The cores are divided among the instances.
    openai: take tensors as Triton's OpenAI frontend and clients of the TensorRT-LLM backend send them, with a first dimension
        of 1 and integers of 32 bits.
    """

    name: str | None = None
    instances: int = 1
    max_queue: int = 128
    threads: int | None = None
    max_batch: int | None = None
    cache_tokens: int | None = None
    prefill_chunk: int | None = None
    backend: str | None = None
    openai: bool = False

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise BuildError(
                f"name: got {self.name!r}, expected letters, digits, '.', '_' and '-', beginning with a letter or digit; "
                "choose another --name"
            )
        for option in ("instances", MAX_QUEUE, *LOAD_OPTIONS):
            value, least = getattr(self, option), 0 if option == MAX_QUEUE else 1
            if value is not None and value < least:
                raise BuildError(f"{option}: got {value}, expected {least} or more; choose another value")


def write_model(engine: Path, repository: Path, model: TritonModel, *, overwrite: bool = False) -> Path:
    """Write the model's folder into `repository` and return its path; a failure leaves the repository unchanged.

    The engine's files are linked where the file system can, and copied elsewhere, so the repository is complete either way.

    Raises:
        ArtifactError: there is no engine or a damaged one, or the folder exists and may not be overwritten.
        BuildError: Triton does not take the name, or the engine cannot serve with these settings.
    """
    manifest = directory.load(engine)
    name = model.name or manifest.name
    if not _NAME.fullmatch(name):
        raise BuildError(
            f"name: got {name!r}, the engine's own, expected letters, digits, '.', '_' and '-', as a folder's name; pass --name"
        )
    _check(engine, manifest, model)
    target = repository / name
    with directory.staged(target, overwrite=overwrite, mark=_MARK) as stage:
        (stage / "config.pbtxt").write_text(render_config(name, manifest, model))
        version = stage / "1"
        version.mkdir()
        (version / "model.py").write_text(_MODEL)
        for path in (directory.MANIFEST, *(file.path for file in manifest.files())):
            _link(engine / path, version / ENGINE / path)
    return target


def render_config(name: str, manifest: Manifest, model: TritonModel) -> str:
    """Return the text of config.pbtxt."""
    used = {model.backend} if model.backend else _backends(manifest)
    kind = "KIND_CPU" if used <= {_CPU} else "KIND_MODEL"  # the runtime itself chooses the device
    parameters = [(key, getattr(model, key)) for key in (MAX_QUEUE, *LOAD_OPTIONS, BACKEND)]
    blocks = [
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: {int(model.openai)}',
        "model_transaction_policy { decoupled: true }",
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group [ {{ count: {model.instances} kind: {kind} }} ]",
        *(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in parameters
            if value is not None
        ),
        f"input [\n{_ports(INPUTS, model, ' optional: true')}\n]",
        f"output [\n{_ports(OUTPUTS, model)}\n]",
    ]
    return "\n".join(blocks) + "\n"


def _ports(ports: tuple[ServedPort, ...], model: TritonModel, options: str = "") -> str:
    types = {"INT64": "INT32"} if model.openai else {}
    lines = [
        f'  {{ name: "{port.name}" data_type: TYPE_{types.get(port.type, port.type)} dims: {list(port.dims)}{options} }}'
        for port in ports
    ]
    return ",\n".join(lines)


def _check(engine: Path, manifest: Manifest, model: TritonModel) -> None:
    """Raise BuildError if a server could not load the model."""
    if "decoder" not in manifest.graphs:
        known = ", ".join(manifest.graphs) or "none"
        raise BuildError(f"{engine}: got graphs {known}, expected one named 'decoder'; build the engine again")
    limit = manifest.limits.max_batch
    if model.max_batch is not None and model.max_batch > limit:
        raise BuildError(
            f"max_batch: got {model.max_batch}, expected 1 to {limit}, the engine's limit; choose a smaller one"
        )
    backends = sorted({_CPU, *_backends(manifest)})
    if model.backend is not None and model.backend not in backends:
        raise BuildError(
            f"backend: got {model.backend!r}, expected one of {', '.join(backends)}, which {engine} has; choose one of them, or "
            "build for this backend first"
        )


def _backends(manifest: Manifest) -> set[str]:
    """The backends for which the directory has engines."""
    return {engine.backend for engine in manifest.graphs["decoder"].engines}


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
