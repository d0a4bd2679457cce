"""The command `enginewright tune tada`: one adapter of two, by TaDA-R or by another scheme to compare with."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from enginewright.exporters.methods.tada.adapter_pair import read_adapters
from enginewright.exporters.methods.tada.baselines import check_packages
from enginewright.exporters.methods.tada.merge_report import check_picture
from enginewright.exporters.methods.tada.merging import MergeJob, check_layers, merge_adapters
from enginewright.exporters.methods.tada.options import GATES, SCHEMES, GateName, MeanName, MergeName, MergeOptions
from enginewright.exporters.methods.tada.probe_texts import LENGTH, Tokens, choose_texts
from enginewright.exporters.methods.tuner import Tuner, TuningData
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import ExportError
from enginewright.runtime.machine import physical_cores

DEFAULTS = MergeOptions()


def _defaults(name: str) -> str:
    """The default of a number by the schemes and gates that take it."""
    taken = {
        key: value
        for known in (SCHEMES, GATES)
        for key, values in known.items()
        for n, value in values.items()
        if n == name
    }
    return "; ".join(f"{key} {value:g}" for key, value in taken.items())


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_HUB_ID", help="the model that both adapters are for")
    add(
        "--task", required=True, action="append", type=Path, metavar="DIR", help="the task's adapter, as PEFT writes it"
    )
    add(
        "--domain",
        required=True,
        action="append",
        type=Path,
        metavar="DIR",
        help="the domain's adapter; one, see the docs",
    )
    add(
        "--texts",
        type=Path,
        metavar="FILE",
        help="texts of the domain for the probe: a .jsonl of texts, or a text, of which windows are taken; needed by the gates "
        "sigmoid and ratio",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="adapter to write, with report.json and gates.png")
    add(
        "--merge",
        choices=get_args(MergeName),
        default=DEFAULTS.merge,
        help="the scheme; all but tada are baselines (tada)",
    )
    add("--gate", choices=get_args(GateName), help="tada: how each layer's share is chosen (sigmoid)")
    add("--mean", choices=get_args(MeanName), help="tada: the probe's mean over tokens (mean)")
    for name, about in (
        ("theta", "components conflict below minus this; from 1 on none do"),
        ("scale", "on the merged change"),
        ("density", "share of entries that TIES keeps"),
        ("drop", "share of entries that DARE drops"),
        ("kappa", "slope of the sigmoid"),
        ("shift", "offset of the sigmoid"),
        ("share", "the domain's share in every layer"),
    ):
        add(f"--{name}", type=float, metavar="X", help=f"{about} ({_defaults(name)})")
    add("--samples", type=int, default=DEFAULTS.samples, metavar="N", help="texts of the probe (32)")
    add("--length", type=int, metavar="N", help=f"tokens of a text at most ({LENGTH}, or the model's context)")
    add("--seed", type=int, default=DEFAULTS.seed, metavar="N", help="of the choice of texts, and of DARE's (0)")
    add("--threads", type=int, metavar="N", help="default: the physical cores")
    add("--no-picture", action="store_true", help="draw no gates.png, which takes matplotlib")
    add("--json", action="store_true", help="print the report as JSON instead of a table")


def _run(arguments: argparse.Namespace, data: TuningData) -> int:
    """Merge, and print the report."""
    names = {field.name for field in dataclasses.fields(MergeOptions)}
    options = MergeOptions(**{name: getattr(arguments, name) for name in names})
    if (threads := arguments.threads) is not None and threads < 1:
        raise ExportError(f"--threads: got {threads}, expected 1 or more")
    for name in ("task", "domain"):
        if len(given := getattr(arguments, name)) > 1:
            raise ExportError(
                f"--{name}: got {len(given)} adapters, expected one; the result depends on the order of merges, so merge two, "
                "then pass the result as the --task of a second command"
            )
    if options.is_probed and arguments.texts is None:
        raise ExportError(
            f"--texts: got none, expected texts of the domain, which --gate {options.gate_name} probes; give a file, or use "
            "--gate ramp or const"
        )
    picture = options.merge == "tada" and not arguments.no_picture
    if picture:
        check_picture()
    check_packages(options)
    torch.set_num_threads(threads or physical_cores())
    task, domain = arguments.task[0], arguments.domain[0]
    checkpoint = open_checkpoint(arguments.model)
    pair = read_adapters(task, domain, checkpoint)
    texts: Sequence[Tokens] = ()
    if arguments.texts is not None and options.merge != "tada":
        print(f"--texts {arguments.texts}: not used: --merge {options.merge} has no probe", file=sys.stderr)
    elif arguments.texts is not None:
        check_layers(checkpoint, pair)
        texts = choose_texts(arguments.texts, data, checkpoint, options)
    job = MergeJob(
        checkpoint=checkpoint, pair=pair, names=(str(task), str(domain)), options=options, texts=texts, picture=picture
    )
    report = merge_adapters(job, arguments.output)
    print(json.dumps(dataclasses.asdict(report), indent=2) if arguments.json else report.table())
    if not arguments.json:
        print(f"{report.method}, rank {report.rank}; use it with --apply lora:path={arguments.output}")
    return 0


TUNERS = (
    Tuner(
        name="tada",
        summary="Merge a task's and a domain's LoRA adapter into one, by TaDA-R or by a baseline.",
        add_arguments=_add_arguments,
        run=_run,
    ),
)
