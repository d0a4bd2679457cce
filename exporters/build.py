"""Builds an engine directory from a checkpoint: the export, the backend's build and the engine's trial in one call.

It combines the exporters and the builders, so it may import both.
"""

from __future__ import annotations

import sys
from pathlib import Path

from enginewright import builders
from enginewright.builders import options
from enginewright.builders.options import BackendOptions
from enginewright.exporters.export import check_graphs, export
from enginewright.exporters.methods import registry
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.trial import Kind, Trial, check_kind, try_engine
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import ExportError, TargetError


def build(
    model: str,
    output: Path,
    recipe: Recipe,
    backend: str,
    chosen: BackendOptions | None = None,
    *,
    overwrite: bool = False,
    trial: Kind = "logits",
    strict: bool = False,
) -> Manifest:
    """Write the engine of `model` to `output` and return its manifest.

    trial: the most that is tried before the engine is published: none; step: a few steps are run; logits: they are also
        compared with the PyTorch model, if its float weights take no more than half of the memory that is free. The
        engine's reports/trial.json says what was done.
    strict: whether parts of the checkpoint that the engine does not use are an error; else they are named on standard error,
        and the engine's reports/unused.json has the list.

    Some engines can be built only on the machine that runs them. The directory then has everything but that engine, and a
    message on standard error gives the command to run there.

    Raises:
        EnginewrightError: with the reason; `output` is then as it was before. A BuildError, if the engine fails its trial.
    """
    check_kind(trial)
    builders.check_backend(backend, chosen)
    if name := registry.giving_graphs(recipe.apply):
        builders.check_graphs(backend, f"the graphs of {name}")
        check_graphs(recipe)
    builders.check_numbers(backend, recipe.dtype, is_packed=recipe.plugins == "all")
    directory.check_output(output, overwrite=overwrite)
    try:
        with directory.staged(output, overwrite=overwrite) as root:
            manifest = export(model, root, recipe, strict=strict, backend=backend)
            try:
                manifest = builders.build(root, manifest, backend, chosen)
                outcome = try_engine(root, manifest, model, recipe, backend, trial)
            except TargetError as e:
                print(_advise(e, output, backend, chosen), file=sys.stderr)
                outcome = Trial(kind="none", told="not tried, because it is to be compiled on another machine")
            outcome.save(root)
            return manifest
    except OSError as e:
        reason = (
            e.strerror or f"{e}; is the disk full?"
        )  # numpy's own OSError has no number, and counts what was written
        raise ExportError(f"{output}: cannot be written ({reason}); nothing was changed") from e


def _advise(error: TargetError, output: Path, backend: str, chosen: BackendOptions | None) -> str:
    flags = options.to_arguments(chosen or BackendOptions())
    command = " ".join(["enginewright", "compile", "DIR", "--backend", backend, *flags])
    return (
        f"{error}\n{output}: written without that engine; copy it to the machine that will run it, and there, with DIR "
        f"its place:\n  {command}"
    )
