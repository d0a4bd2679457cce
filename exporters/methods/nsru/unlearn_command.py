"""The command `enginewright tune nsru`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from enginewright.exporters.methods.nsru.answer_lines import (
    FORGET_KEYS,
    RETAIN_KEYS,
    AnswerLine,
    fill_safe,
    read_answers,
    refuse_shared,
)
from enginewright.exporters.methods.nsru.response_tokens import Prompts, ResponseTokens
from enginewright.exporters.methods.nsru.unlearn import UnlearnTexts, unlearn
from enginewright.exporters.methods.nsru.unlearn_options import PROJECTIONS, Energy, Place, Training, UnlearnOptions
from enginewright.exporters.methods.nsru.unlearn_report import require_plotting
from enginewright.exporters.methods.tuner import Tuner, TuningData
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.tokenizer.engine_tokenizer import need_tokenizer
from enginewright.runtime.errors import ExportError
from enginewright.runtime.machine import physical_cores

DEFAULTS = UnlearnOptions()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    subspace = parser.add_argument_group("subspace")
    subspace.add_argument("--energy", type=float, default=DEFAULTS.energy, metavar="X", help="share it holds (0.9)")
    subspace.add_argument(
        "--most", type=int, metavar="N", help="dimensions at most (128; a quarter of the inputs in a small model)"
    )
    subspace.add_argument(
        "--at",
        choices=get_args(Place),
        default=DEFAULTS.at,
        help="token whose inputs are samples: the prompt's last, the last of the user's text, the answer's last, the mean "
        "over all, or each (prompt-last)",
    )
    subspace.add_argument("--centre", action="store_true", help="subtract the samples' mean first")
    subspace.add_argument(
        "--energy-of",
        choices=get_args(Energy),
        default=DEFAULTS.energy_of,
        help="--energy is of the --most largest singular values, or of all (capped)",
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--method",
        choices=get_args(Training),
        default=DEFAULTS.method,
        help="nsru, or a baseline: the same losses without projection (lora), gradient ascent, GradDiff, NPO (nsru)",
    )
    training.add_argument("--layers", type=int, metavar="N", help="the last N blocks (16; half of a small model's)")
    training.add_argument("--rank", type=int, metavar="N", help="of the adapters (64; 16 in a small model)")
    training.add_argument(
        "--modules", nargs="+", choices=PROJECTIONS, default=list(PROJECTIONS), help="projections of attention (all)"
    )
    for name, help_ in (("safe", "safe answers'"), ("forget", "undesired answers'"), ("retain", "retained answers'")):
        default = getattr(DEFAULTS, f"{name}_weight")
        training.add_argument(
            f"--{name}-weight", type=float, default=default, metavar="X", help=f"of the {help_} loss ({default:g})"
        )
    training.add_argument(
        "--forget-cap", type=float, metavar="X", help="nats a token, above which forgetting stops (none)"
    )
    training.add_argument("--beta", type=float, default=DEFAULTS.beta, metavar="X", help="temperature of npo (0.1)")
    training.add_argument("--steps", type=int, default=DEFAULTS.steps, metavar="N", help="(300)")
    training.add_argument(
        "--batch", type=int, default=DEFAULTS.batch, metavar="N", help="lines a step, half of each file (32)"
    )
    training.add_argument("--rate", type=float, default=DEFAULTS.rate, metavar="X", help="learning rate (1e-4)")
    training.add_argument("--warmup", type=int, default=DEFAULTS.warmup, metavar="N", help="steps (10)")
    training.add_argument(
        "--length", type=int, default=DEFAULTS.length, metavar="N", help="tokens of a line at most (1024)"
    )
    training.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="the checkpoint, which stays as it is")
    parser.add_argument(
        "--forget",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help='lines {"prompt", "answer", "safe"}: answers to unlearn, and those to give instead',
    )
    parser.add_argument(
        "--retain", required=True, type=Path, metavar="FILE.jsonl", help='lines {"prompt", "answer"}: answers to keep'
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="PEFT adapter to write, with a report"
    )
    parser.add_argument(
        "--category", default="", metavar="TEXT", help="subject of the forget file, for lines without a safe answer"
    )


def _run(arguments: argparse.Namespace, data: TuningData) -> int:
    """Train, and print how far each kind of answer has come."""
    given = {name: getattr(arguments, name) for name in UnlearnOptions.names()}
    options = UnlearnOptions(**{**given, "modules": tuple(arguments.modules)})
    if arguments.threads is not None and arguments.threads < 1:
        raise ExportError(f"--threads: got {arguments.threads}, expected 1 or more")
    require_plotting()
    texts = read_texts(arguments.model, arguments.forget, arguments.retain, arguments.category, options.length)
    torch.set_num_threads(arguments.threads or physical_cores())
    report = unlearn(arguments.model, texts, arguments.output, options)
    print(json.dumps(report, indent=2) if arguments.json else _table(report, arguments.output))
    return 0


def read_texts(model: str, forget: Path, retain: Path, category: str, length: int) -> UnlearnTexts:
    """Return the tokens of both files, as the model's chat template writes them where it has one.

    length: tokens of prompt and answer at most.

    Raises:
        ExportError: a file or a line is not as expected, or the model has no tokenizer.
    """
    forgotten, kept = read_answers(forget, FORGET_KEYS), read_answers(retain, RETAIN_KEYS)
    refuse_shared(forgotten, kept, (forget, retain))
    forgotten, templated = fill_safe(forgotten, category, forget)
    checkpoint = open_checkpoint(model)
    prompts = Prompts(need_tokenizer(checkpoint), min(length, checkpoint.longest_context or length))

    def encode(lines: Sequence[AnswerLine], part: str, path: Path) -> tuple[ResponseTokens, ...]:
        return tuple(prompts.encode(each.prompt, getattr(each, part), f"{path}:{each.line}") for each in lines)

    return UnlearnTexts(
        undesired=encode(forgotten, "answer", forget),
        safe=encode(forgotten, "safe", forget),
        retain=encode(kept, "answer", retain),
        templated=templated,
    )


def _table(report: dict[str, Any], output: Path) -> str:
    cut, modules = sum(report["answers_cut"].values()), report["modules"]
    lines = [f"{report['forget']} answers to forget, {report['retain']} to retain"]
    if report["safe_from_template"]:
        lines.append(f"{report['safe_from_template']} safe answers are the template's")
    if cut:
        lines.append(f"{cut} answers were cut at --length")
    for kind in ("safe", "undesired", "retain"):
        if curve := report["curves"].get(kind):
            lines.append(f"{kind} answers: {curve[0]:.3f} nats a token in the first step, {curve[-1]:.3f} in the last")
    for last in ("q_proj", "o_proj"):
        own = [each for each in modules if each["name"].endswith(last)]
        if own:
            ks = [each["k"] for each in own]
            shares = [max(each[f"residual_{part}"] for each in own) for part in ("retain", "forget")]
            lines.append(
                f"inputs of {last}: k = {min(ks)} to {max(ks)}; at most {shares[0]:.3f} of the retained energy outside, "
                f"{shares[1]:.3f} of the forgotten"
            )
    return "\n".join([*lines, f"merge it into an engine with --apply lora:path={output}"])


TUNER = Tuner(
    name="nsru",
    summary="Train an adapter that unlearns answers and leaves what is to be kept as it is.",
    add_arguments=_add_arguments,
    run=_run,
)
