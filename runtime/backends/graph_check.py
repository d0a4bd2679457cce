"""Checks that this runtime can serve a decoder graph: its inputs, outputs, types and ops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from enginewright.plugins.ops.registry import OPS
from enginewright.runtime.artifact.decoder_graph import CONDITION, OUTPUTS, POOL, Axis, Port, inputs, outputs
from enginewright.runtime.artifact.manifest import Graph, Manifest, TensorSpec
from enginewright.runtime.errors import ArtifactError

AGAIN = "build the engine again"


def check_signature(root: Path, manifest: Manifest, taken: Iterable[str]) -> None:
    """Raise ArtifactError where the graph asks for something that this runtime does not have, or lacks what it reads.

    taken: names of the inputs that the opened graph itself has.
    """
    graph = manifest.graphs["decoder"]
    declared = {port.name: port for port in inputs(manifest)}
    names = {spec.name for spec in graph.inputs}
    for spec in graph.inputs:
        _check_spec(root, "input", spec, declared)
    if differing := set(taken) ^ names:
        listed = ", ".join(sorted(differing))
        raise ArtifactError(f"{root}: manifest and decoder graph differ in inputs {listed}; {AGAIN}")
    for name in sorted(declared.keys() - names):
        raise ArtifactError(f"{root}: the decoder graph takes no {name!r}{_reason(name)}; {AGAIN}")
    read = {port.name: port for port in outputs(manifest)}
    for spec in graph.outputs:
        if spec.alias is None:
            _check_spec(root, "output", spec, read)
        else:
            pools = {f"{spec.alias}.out": declared[spec.alias]} if spec.alias in declared else {}
            _check_spec(root, "output", spec, pools)
    for name in sorted({port.name for port in OUTPUTS} - {spec.name for spec in graph.outputs}):
        raise ArtifactError(f"{root}: the decoder graph has no output {name!r}; {AGAIN}")


def _reason(name: str) -> str:
    """In words, what calls for the input `name`."""
    if name.startswith(POOL):
        return ", which the cache has"
    if name.startswith(CONDITION):
        return f", which the manifest's condition {name.split('.')[1]!r} has"
    return ""


def _check_spec(root: Path, kind: str, spec: TensorSpec, declared: Mapping[str, Port]) -> None:
    where = f"{root}: decoder {kind} {spec.name!r}"
    port = declared.get(spec.name)
    if port is None:
        raise ArtifactError(f"{where}: {_unknown(spec.name, declared)}")
    if spec.dtype != port.dtype:
        raise ArtifactError(f"{where}: got {spec.dtype}, expected {port.dtype}; {AGAIN}")
    if not _agree(spec, port):
        raise ArtifactError(f"{where}: got the shape {_write(spec.shape)}, expected {_write(port.axes)}; {AGAIN}")


def _unknown(name: str, declared: Mapping[str, Port]) -> str:
    for beginning, owner in ((POOL, "cache, which has"), (CONDITION, "conditions, which have")):
        if name.startswith(beginning):
            known = ", ".join(sorted(each for each in declared if each.startswith(beginning))) or "none"
            return f"not in the manifest's {owner} {known}; {AGAIN}"
    return f"unknown to this runtime, expected one of {', '.join(sorted(declared))}; upgrade enginewright"


def _agree(spec: TensorSpec, port: Port) -> bool:
    """Whether a graph's tensor has the port's axes: fixed sizes are equal, and of conditions the names of the others, too."""
    if spec.name.startswith(CONDITION):
        return tuple(spec.shape) == port.axes
    return len(spec.shape) == len(port.axes) and not any(
        isinstance(size, int) and isinstance(axis, int) and size != axis
        for size, axis in zip(spec.shape, port.axes, strict=True)
    )


def _write(shape: tuple[Axis, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def check_ops(root: Path, graph: Graph) -> None:
    """Raise ArtifactError where the graph uses an op, or a version of it, that this installation does not have."""
    for name, version in graph.ops.items():
        if name not in OPS:
            known = ", ".join(OPS)
            raise ArtifactError(f"{root}: op {name!r} is unknown, expected one of {known}; upgrade enginewright")
        if OPS[name].version != version:
            raise ArtifactError(
                f"{root}: the graph uses {name} version {version}, this installation has version {OPS[name].version}; "
                f"build the engine again with this enginewright, or install the one that built it"
            )
