"""The tuners of extra heads: `enginewright tune clp` trains them, `enginewright tune medusa` converts trained ones."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from enginewright.exporters.methods.clp import medusa, train
from enginewright.exporters.methods.clp.backbone_states import TokenSequence
from enginewright.exporters.methods.clp.report import HeadsReport
from enginewright.exporters.methods.tuner import Tuner, TuningData
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.tokenizer.engine_tokenizer import need_tokenizer
from enginewright.runtime.errors import ExportError
from enginewright.runtime.machine import physical_cores

PROBLEMS = "reasoning"
TEXT_LENGTH, PROBLEM_LENGTH = 128, 1536
DEFAULTS = train.Options()


def _add_clp(heads: argparse.ArgumentParser) -> None:
    heads.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="the backbone, which stays as it is")
    heads.add_argument(
        "--data", required=True, metavar="FILE", help=f"a text, a .jsonl of texts, or `{PROBLEMS}`: generated problems"
    )
    heads.add_argument("--output", required=True, type=Path, metavar="DIR", help="set of heads to write")
    heads.add_argument("--k", type=int, default=DEFAULTS.k, metavar="N", help="tokens of one emission (3)")
    heads.add_argument(
        "--label-source",
        default=DEFAULTS.label_source,
        metavar="NAME",
        help="a head is right when it says what stands in the text (data) or what the backbone says (backbone)",
    )
    heads.add_argument("--length", type=int, metavar="N", help=f"tokens of a text ({TEXT_LENGTH}; {PROBLEM_LENGTH})")
    heads.add_argument("--samples", type=int, default=20_000, metavar="N", help="texts at most (20000)")
    heads.add_argument("--head-hidden", type=int, metavar="N", help="width of a head (half the backbone's)")
    heads.add_argument("--epochs", type=int, default=DEFAULTS.epochs, metavar="N", help="of the heads (15)")
    heads.add_argument("--rate", type=float, default=DEFAULTS.rate, metavar="X", help="learning rate of the heads")
    heads.add_argument("--batch", type=int, default=DEFAULTS.batch, metavar="N", help="texts in a step (8)")
    heads.add_argument(
        "--held-out", type=float, default=DEFAULTS.held_out, metavar="X", help="share kept from the heads (0.2)"
    )
    heads.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N")
    heads.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    heads.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")


def _add_medusa(heads: argparse.ArgumentParser) -> None:
    heads.add_argument("--heads", required=True, type=Path, metavar="DIR", help="with medusa_lm_head.safetensors")
    heads.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="the backbone they were made for")
    heads.add_argument("--output", required=True, type=Path, metavar="DIR", help="set of heads to write")
    heads.add_argument("--k", type=int, metavar="N", help="tokens of one emission (one more than the heads)")


def _convert(arguments: argparse.Namespace, data: TuningData) -> int:
    """Write Medusa's heads as a set, and tell how to use it."""
    if arguments.k is not None and arguments.k < 2:
        raise ExportError(f"--k: got {arguments.k}, expected 2 or more")
    count = None if arguments.k is None else arguments.k - 1
    made = medusa.convert(arguments.heads, arguments.model, arguments.output, count)
    print(f"{made.shape.extra} heads; build with --apply clp:heads={arguments.output},verify=true")
    return 0


def _train(arguments: argparse.Namespace, data: TuningData) -> int:
    """Train, and print how good the heads are."""
    for name in ("samples", "length", "head_hidden", "threads"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ExportError(f"--{name.replace('_', '-')}: got {value}, expected 1 or more")
    torch.set_num_threads(arguments.threads or physical_cores())
    names = {field.name for field in dataclasses.fields(train.Options)} & vars(arguments).keys()
    options = train.Options(**{name: getattr(arguments, name) for name in names})
    texts = list(islice(_texts(arguments, data), arguments.samples))
    report = train.tune(arguments.model, texts, arguments.output, options)
    print(json.dumps(dataclasses.asdict(report), indent=2) if arguments.json else _table(report))
    return 0


def _texts(arguments: argparse.Namespace, data: TuningData) -> Iterator[TokenSequence]:
    """Token sequences of the data, none longer than --length."""
    is_problems = arguments.data == PROBLEMS and not Path(arguments.data).exists()
    length = arguments.length or (PROBLEM_LENGTH if is_problems else TEXT_LENGTH)
    documents = () if is_problems else data.read_texts(Path(arguments.data))
    tokenizer = need_tokenizer(open_checkpoint(arguments.model))
    if is_problems:
        for prompt, text in _problems(tokenizer, data, arguments.seed):
            yield from _sequences(tokenizer, prompt, text, length)
    for document in documents:
        yield from _sequences(tokenizer, document.prompt, document.text, length)


def _sequences(tokenizer: Any, prompt: str, text: str, length: int) -> Iterator[TokenSequence]:
    """A completion after its prompt, or a text in windows."""
    given = len(tokenizer.encode(prompt)) if prompt else 0
    ids = tokenizer.encode(prompt + text)
    for begin in range(0, 1 if given else len(ids), length):
        window = TokenSequence(ids=tuple(ids[begin : begin + length]), given=given)
        if window.positions > 1:
            yield window


def _problems(tokenizer: Any, data: TuningData, seed: int) -> Iterator[tuple[str, str]]:
    """Endless problems as the chat template writes them, each with its solution."""
    if not tokenizer.chat_template:
        raise ExportError(f"--data {PROBLEMS}: got a tokenizer without a chat template, expected one")
    for problem in data.make_problems(f"heads {seed}"):
        asked = [{"role": "user", "content": problem.question}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        yield prompt, problem.solution + tokenizer.eos_token


def _table(report: HeadsReport) -> str:
    heads = [
        f"head {j}: right {100 * right:.1f} %, as the backbone {100 * agreed:.1f} %"
        for j, (right, agreed) in enumerate(zip(report.accuracy, report.agreement, strict=True), start=1)
    ]
    lines = [
        f"{report.positions} positions that neither heads nor classifier learned from",
        *heads,
        f"classifier: cross-entropy {report.classifier_loss:.3f}, of the lengths' frequencies {report.prior_loss:.3f}",
        f"tokens a step with the right length every time: {report.longest:.3f}",
        "tau   tokens a step   verified   agreement",
        *(
            f"{t.tau:.1f}   {t.emitted:13.3f}   {t.verified:8.3f}   {100 * t.agreement:7.1f} %"
            for t in report.thresholds
        ),
    ]
    return "\n".join(lines)


TUNERS = (
    Tuner(
        name="clp",
        summary="Train CLP's extra heads and length classifier.",
        add_arguments=_add_clp,
        run=_train,
    ),
    Tuner(
        name="medusa",
        summary="Turn trained Medusa heads into a set for the method clp.",
        add_arguments=_add_medusa,
        run=_convert,
    ),
)
