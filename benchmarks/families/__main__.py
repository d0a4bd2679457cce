"""Compares engines of every model type that transformers knows with transformers, over small checkpoints that look trained.

    nox -s families                          all types and variants; what an earlier run has done is not done again
    nox -s families -- qwen3 glm4_moe        these types, again
    nox -s families -- --write docs/reference/families.md

Each type that `check_supported` admits gets a random checkpoint of three or four layers: norms that are not one, biases and
persistent buffers that are not zero, a window below the length of the prompts. Of it come four engines: float32 with a
32-bit cache, the same of standard ops, with int8 weights, and with KVarN. The first two are compared with transformers'
eager float32 logits, the third by the tolerance of `enginewright check`, the last with the same model over KVarN's oracle.

Of multimodal types, an engine of the text part, in float32 with a 32-bit cache, is compared with the whole model on text.

Exit status: 0, if no type is wrong; 1, if one is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks.families.compare_type import refusal_of, try_type
from benchmarks.families.small_configs import model_types, published_config, whole_types
from benchmarks.families.table import page
from benchmarks.families.text_parts import try_text_part
from benchmarks.families.variants import VARIANTS
from benchmarks.families.verdicts import TypeResult, read_sweep
from benchmarks.results_file import this_commit

RESULTS = Path(__file__).resolve().with_name("results.json")
TYPES_A_PROCESS = (
    8  # about: what torch and transformers keep of each model adds up; max_tasks_per_child hangs in Python 3.11
)


def main(arguments: Sequence[str]) -> int:
    """Sweep, print each type's verdict as it comes, and the types that are wrong."""
    args = parse_arguments(arguments)
    found = read_sweep(args.json)
    wanted = args.types or ([] if args.write else [name for name in all_types() if name not in found.of(name)])
    commit = this_commit()
    for result in sweep(wanted, args.variants, args.processes):
        print(describe(result), flush=True)
        kept = found.of(result.model_type)
        known = kept.get(result.model_type, result).variants
        kept[result.model_type] = replace(result, commit=commit, variants={**known, **result.variants})
        found.write(args.json)
    if args.write is not None:
        args.write.write_text(page(found))
    kinds = [result.kind for results in (found.results, found.text_parts) for result in results.values()]
    print(f"{kinds.count('right')} right, {kinds.count('refused')} refused, {kinds.count('wrong')} wrong")
    return 1 if "wrong" in kinds else 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.families", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types (default: those without a result)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: the cores")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="where results are kept")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the results as a page of the documentation")
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.types) - set(all_types())):
        parser.error(f"got {unknown[0]!r}, expected model types of transformers, such as qwen3")
    return args


def sweep(types: Sequence[str], variants: Sequence[str], processes: int) -> Iterator[TypeResult]:
    """Yield the result of each type as it is done; types that their config refuses need no process."""
    admitted = []
    for name in types:
        if refusal := refusal_of(published_config(name)):
            yield TypeResult(model_type=name, refusal=refusal)
        else:
            admitted.append(name)
    server = get_context("forkserver")
    server.set_forkserver_preload(["benchmarks.families.compare_type"])  # so that torch is imported once
    group = TYPES_A_PROCESS * processes
    for some in (admitted[begin : begin + group] for begin in range(0, len(admitted), group)):
        with ProcessPoolExecutor(processes, mp_context=server) as pool:
            running = {_submit(pool, name, variants): name for name in some}
            for done in as_completed(running):
                yield _outcome(running[done], done)


def _submit(pool: ProcessPoolExecutor, name: str, variants: Sequence[str]) -> Future[TypeResult]:
    return pool.submit(try_text_part, name) if name in whole_types() else pool.submit(try_type, name, variants)


def _outcome(name: str, done: Future[TypeResult]) -> TypeResult:
    """The result of a type; an error that is no refusal is its failure."""
    error = done.exception()
    if error is None:
        return done.result()
    return TypeResult(model_type=name, failure=f"{type(error).__name__}: {error}".partition("\n")[0])


def all_types() -> tuple[str, ...]:
    """The types of language models, and the multimodal ones."""
    return (*model_types(), *whole_types())


def describe(result: TypeResult) -> str:
    """A line about a type."""
    if told := result.failure or result.refusal:
        return f"{result.model_type:24} {result.kind:8} {told}"
    figures = (
        f"{name} {verdict.kind if verdict.value is None else f'{verdict.value:.1e}'}"
        + (f" ({verdict.told})" if verdict.kind != "right" else "")
        for name, verdict in result.variants.items()
    )
    return f"{result.model_type:24} {result.kind:8} {', '.join(figures)}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
