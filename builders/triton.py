"""Engine directory to a model of a Triton model repository: config.pbtxt, model.py, and the engine's files beside it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from enginewright.plugins.cuda import ORT_BACKEND
from enginewright.runtime import artifact
from enginewright.runtime.artifact import Manifest
from enginewright.runtime.errors import BuildError
from enginewright.runtime.triton.signature import ENGINE, INPUTS, LOAD_OPTIONS, MAX_QUEUE, OUTPUTS, Port

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MARK = f"1/{ENGINE}/{artifact.MANIFEST}"

_MODEL = '''"""Serves the engine beside this file; written by `enginewright triton`."""

from enginewright.runtime.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, kw_only=True)
class TritonModel:
    """How an engine is served.

    name: of the model and its folder; None: the engine's. instances: processes that serve it, each with a batch and a cache
    of its own. max_queue: requests of an instance that may wait for a slot. threads, max_batch, cache_tokens,
    prefill_chunk: of `load`, for each instance; None: its default, with the cores shared out among the instances.
    """

    name: str | None = None
    instances: int = 1
    max_queue: int = 128
    threads: int | None = None
    max_batch: int | None = None
    cache_tokens: int | None = None
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise BuildError(
                f"name: got {self.name!r}, expected letters, digits, '.', '_' and '-', not beginning with a sign; choose "
                "another --name"
            )
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == MAX_QUEUE else 1
            if field.name != "name" and value is not None and value < least:
                raise BuildError(f"{field.name}: got {value}, expected {least} or more")


def write_model(engine: Path, repository: Path, model: TritonModel, *, overwrite: bool = False) -> Path:
    """Write the model's folder into `repository` and return it; a failure leaves what was there.

    The engine's files are linked where the file system can, and copied elsewhere, so the repository is complete either way.

    Raises:
        ArtifactError: no engine or a damaged one, or the folder exists and may not be overwritten.
        BuildError: a name that Triton does not take, or what the engine cannot serve.
    """
    manifest = artifact.load(engine)
    name = model.name or manifest.name
    if not _NAME.fullmatch(name):
        raise BuildError(f"name: got {name!r}, the engine's own, which cannot name a folder; pass --name")
    _check(engine, manifest, model)
    target = repository / name
    with artifact.staged(target, overwrite=overwrite, mark=_MARK) as stage:
        (stage / "config.pbtxt").write_text(render_config(name, manifest, model))
        version = stage / "1"
        version.mkdir()
        (version / "model.py").write_text(_MODEL)
        for path in (artifact.MANIFEST, *(file.path for file in manifest.files())):
            _link(engine / path, version / ENGINE / path)
    return target


def render_config(name: str, manifest: Manifest, model: TritonModel) -> str:
    """Return the text of config.pbtxt."""
    built = {engine.backend for graph in manifest.graphs.values() for engine in graph.engines}
    kind = "KIND_MODEL" if ORT_BACKEND in built else "KIND_CPU"
    numbers = {MAX_QUEUE: model.max_queue, **{option: getattr(model, option) for option in LOAD_OPTIONS}}
    parameters = [(key, str(value)) for key, value in numbers.items() if value is not None]
    blocks = [
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 0',
        "model_transaction_policy { decoupled: true }",
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group [ {{ count: {model.instances} kind: {kind} }} ]",
        *(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters),
        f"input [\n{_ports(INPUTS, ' optional: true')}\n]",
        f"output [\n{_ports(OUTPUTS, '')}\n]",
    ]
    return "\n".join(blocks) + "\n"


def _ports(ports: tuple[Port, ...], options: str) -> str:
    lines = [
        f'  {{ name: "{port.name}" data_type: TYPE_{port.type} dims: {list(port.dims)}{options} }}' for port in ports
    ]
    return ",\n".join(lines)


def _check(engine: Path, manifest: Manifest, model: TritonModel) -> None:
    """Raise BuildError where a server could not load the model."""
    if "decoder" not in manifest.graphs:
        known = ", ".join(manifest.graphs) or "none"
        raise BuildError(f"{engine}: got graphs {known}, expected one named 'decoder'; build the engine again")
    limit = manifest.limits.max_batch
    if model.max_batch is not None and model.max_batch > limit:
        raise BuildError(f"max_batch: got {model.max_batch}, expected 1 to {limit}, the engine's limit")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
