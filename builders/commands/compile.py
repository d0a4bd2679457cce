"""`enginewright compile`: builds a backend's engine on the machine that will run it, without torch and the checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from enginewright import builders
from enginewright.builders import options
from enginewright.runtime.artifact import directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "engine", type=Path, metavar="DIR", help="engine directory; the backend's engine is added to it"
    )
    parser.add_argument("--backend", required=True, help=f"one of {', '.join(builders.BACKENDS)}")
    options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Build the engines; on failure the directory is what it was."""
    begin, backend = time.perf_counter(), arguments.backend
    chosen = options.from_arguments(arguments)
    builders.check_backend(backend, chosen)
    with directory.kept(arguments.engine):
        manifest = builders.build(arguments.engine, directory.load(arguments.engine), backend, chosen)
    for graph in manifest.graphs.values():
        for engine in (e for e in graph.engines if e.backend == backend):
            size, took = engine.files[0].size / 1e6, time.perf_counter() - begin
            print(f"{arguments.engine / engine.files[0].path}: {size:.1f} MB for {engine.compute} in {took:.1f} s")
    return 0
