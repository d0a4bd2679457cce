"""The tuner of function vectors: `enginewright tune function-vector` writes a folder of vectors for the method steering."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from enginewright.exporters.config_text import split_spec
from enginewright.exporters.methods.function_vectors.extract import ExtractionOptions, FunctionVectors, extract
from enginewright.exporters.methods.function_vectors.prompts import WordTask, read_task
from enginewright.exporters.methods.steering.vector_folder import check_output, write_vectors
from enginewright.exporters.methods.tuner import Tuner, TuningData
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.json_file import read_json
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.tokenizer.engine_tokenizer import open_tokenizer
from enginewright.runtime.artifact.vector_files import TASK
from enginewright.runtime.errors import ExportError
from enginewright.runtime.machine import physical_cores

DEFAULTS = ExtractionOptions(shots=8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="the model, which stays as it is")
    parser.add_argument(
        "--task", required=True, type=Path, metavar="FILE", help='a JSON list of {"input": ..., "output": ...}'
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of vectors to write")
    parser.add_argument("--name", metavar="TEXT", help="what requests call the vectors (the task's file)")
    parser.add_argument("--shots", type=int, metavar="N", help="prompts with this many demonstrations, such as 8")
    parser.add_argument(
        "--instruction",
        action="append",
        default=[],
        metavar="TEXT",
        help="prompts with instructions instead; repeatable",
    )
    parser.add_argument(
        "--frame",
        metavar="WORD,WORD",
        help="keywords of the instructions that say what the task is (all but stop words)",
    )
    parser.add_argument(
        "--heads", type=int, default=DEFAULTS.heads, metavar="K", help="heads that make the vectors (20)"
    )
    parser.add_argument(
        "--layer", type=int, metavar="N", help="after which their sum is added (the best for the training pairs)"
    )
    parser.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="vectors of another task on the same model: the heads are those that are best for all; repeatable",
    )
    parser.add_argument(
        "--apply",
        action="append",
        default=[],
        metavar="METHOD",
        help="methods that change weights, as in `build`; repeatable",
    )
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace, data: TuningData) -> int:
    """Make the vectors, write them, and print how well they work."""
    from enginewright.exporters.methods import registry  # imports every method, this one among them

    check_output(arguments.output)
    options = ExtractionOptions(
        heads=arguments.heads,
        shots=arguments.shots,
        instructions=tuple(arguments.instruction),
        frame=tuple(word.strip() for word in arguments.frame.split(",")) if arguments.frame else (),
        layer=arguments.layer,
        seed=arguments.seed,
    )
    if arguments.threads is not None and arguments.threads < 1:
        raise ExportError(f"--threads: got {arguments.threads}, expected 1 or more")
    task = read_task(arguments.task, options.seed, name=arguments.name)
    torch.set_num_threads(arguments.threads or physical_cores())
    applied = [registry.apply_method(*split_spec(text)) for text in arguments.apply]
    checkpoint = open_checkpoint(arguments.model)
    tokenizer = open_fast_tokenizer(checkpoint)
    model = load_reference(checkpoint, applied)
    digest = registry.hash_of_applied(applied, checkpoint, model)
    others = [_read_scores(folder, digest) for folder in arguments.others]
    made = extract(model, tokenizer, task, options, others=others)
    record = _describe(made, task, options, arguments.apply)
    vectors = {f"dfv.{layer}": vector.float().numpy() for layer, vector in made.at_heads.items()}
    write_vectors(
        arguments.output,
        {**vectors, "fv": made.whole.float().numpy()},
        task=task.name,
        model={"name": checkpoint.name, "sha256": digest},
        layer=made.layer,
        more=record,
    )
    print(json.dumps(record, indent=2) if arguments.json else _report(made, task))
    return 0


def open_fast_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint of any format; ExportError where it has none that knows the places of its tokens."""
    found = open_tokenizer(checkpoint, checkpoint.tokenizer_files())
    if found is None or not found.is_fast:
        raise ExportError(
            f"{checkpoint.path}: got no tokenizer that knows the places of its tokens, expected a tokenizer.json; add it to the "
            "checkpoint"
        )
    return found


def _read_scores(folder: Path, digest: str) -> torch.Tensor:
    """The scores of heads in a folder of vectors; ExportError where they are of another model."""
    record = read_json(folder / TASK, "task")
    model = record.get("model")
    if not isinstance(model, dict) or model.get("sha256") != digest:
        raise ExportError(
            f"--with: {folder}: got vectors of another model, expected those of --model with the same --apply"
        )
    try:
        return torch.tensor(record["scores"], dtype=torch.float32)
    except (KeyError, TypeError, ValueError) as e:
        raise ExportError(
            f"--with: {folder / TASK}: got no scores of heads ({e}), expected [L, H]; make them again"
        ) from e


def _describe(
    made: FunctionVectors, task: WordTask, options: ExtractionOptions, applied: Sequence[str]
) -> dict[str, Any]:
    """The keys of task.json that tell how the vectors were made."""
    return {
        "variant": "instructions" if options.shots is None else "few-shot (prompts of Todd et al., heads by relevance)",
        "heads": [list(head) for head in made.heads],
        "counts": {**made.counts, "train pairs": len(task.train)},
        "accuracy": made.accuracy,
        "applied": list(applied),
        "options": {
            "shots": options.shots,
            "instructions": list(options.instructions),
            "frame": list(options.frame),
            "seed": options.seed,
        },
        "scores": made.scores.tolist(),
    }


def _report(made: FunctionVectors, task: WordTask) -> str:
    found = made.accuracy
    return "\n".join([
        f"{task.name}: {len(made.heads)} heads in {len(made.at_heads)} layers; the best are "
        + ", ".join(f"{layer}.{head}" for layer, head in made.heads[:5]),
        f"of {found['test pairs']} test pairs without demonstrations, right first tokens: {found['nothing']} plain, "
        f"{found['at heads']} with the vectors at heads, {found['in the stream']} with their sum after layer {made.layer}",
        "load them into an engine that was built with --apply steering",
    ])  # fmt: skip


TUNERS = (
    Tuner(
        name="function-vector",
        summary="Make vectors of a task's attention heads, for engines with the method steering.",
        add_arguments=add_arguments,
        run=run,
    ),
)
