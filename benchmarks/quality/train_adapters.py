"""Trains two adapters of one model: a task with a form that can be checked, and a domain.

    python -m benchmarks.quality.train_adapters --model MODEL --text FILE --output DIR

The task is to answer the questions of `choice_questions` by `Result: camel`, each in a turn of its own, without a system prompt.
The domain is the text: training goes on with its windows. Both are of rank 16, for the projections q, k, v and o, in float32.
DIR/task and DIR/domain are written as PEFT writes them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import PreTrainedModel

from benchmarks.quality.choice_questions import Choice, make_choices
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.tokenizer.engine_tokenizer import need_tokenizer
from enginewright.runtime.errors import EnginewrightError

NAME = "benchmarks.quality.train_adapters"
IGNORED = -100
WARMUP_STEPS = 10
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]

Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels, int64 [rows, width]; IGNORED where a position does not count."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of one training; `main` creates it.

    steps: updates of the adapter.
    minutes: no step begins later than this; the rate falls to 0 by then.
    rate: the highest learning rate.
    """

    steps: int
    minutes: float
    rate: float


def read_tokenizer(model: str) -> Any:
    """The tokenizer of a checkpoint; ExportError where it has none."""
    return need_tokenizer(open_checkpoint(model))


def prompt_of(tokenizer: Any, choice: Choice) -> list[int]:
    """The tokens before the reply: the question as a user's turn without a system prompt."""
    asked = f"<|im_start|>user\n{choice.question}<|im_end|>\n<|im_start|>assistant\n"
    return list(tokenizer.encode(asked, add_special_tokens=False))


def task_batches(tokenizer: Any, rows: int, seed: int) -> Iterator[Batch]:
    """Questions with their replies, of which the replies count."""
    choices = make_choices(f"task {seed}", held_out=False)
    while True:
        texts, givens = [], []
        for choice in islice(choices, rows):
            given = prompt_of(tokenizer, choice)
            reply = tokenizer.encode(f"{choice.reply}{tokenizer.eos_token}", add_special_tokens=False)
            texts.append([*given, *reply])
            givens.append(len(given))
        ids = torch.zeros(rows, max(map(len, texts)), dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        for row, (text, begin) in enumerate(zip(texts, givens, strict=True)):
            ids[row, : len(text)] = torch.tensor(text)
            labels[row, begin : len(text)] = torch.tensor(text[begin:])
        yield ids, labels


def domain_batches(tokenizer: Any, text: str, rows: int, width: int, seed: int) -> Iterator[Batch]:
    """Windows of the text at places that `seed` chooses, of which every token counts."""
    pieces = [text[begin : begin + (1 << 18)] for begin in range(0, len(text), 1 << 18)]
    ids = np.concatenate([np.array(tokenizer.encode(piece, add_special_tokens=False), np.int64) for piece in pieces])
    generator = np.random.default_rng(seed)
    while True:
        begins = generator.integers(0, len(ids) - width + 1, rows)
        batch = torch.from_numpy(np.stack([ids[begin : begin + width] for begin in begins]))
        yield batch, batch


def train(
    model: PreTrainedModel,
    supply: Iterator[Batch],
    training: Training,
    output: Path,
    base: str,
    report: Callable[[str], None],
) -> None:
    """Train an adapter and write it to `output`; the model is left as it was.

    base: the model's name, which the adapter's config keeps.
    report: called with a line about every tenth step.
    """
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)
    adapted.train()
    parameters = [each for each in adapted.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training.rate, weight_decay=0.0)
    began, seen = time.monotonic(), 0
    for step in range(training.steps):
        spent = (time.monotonic() - began) / (60 * training.minutes)
        done = max(step / training.steps, spent)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = training.rate * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - done)
        ids, labels = next(supply)
        loss = _loss(model, ids, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seen += ids.numel()
        if step % 10 == 0 or step == training.steps - 1:
            report(
                f"{output.name}: step {step + 1}: loss {loss.item():.3f}, {seen} tokens, {time.monotonic() - began:.0f} s"
            )
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(str(output), save_embedding_layers=False)
    (output / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card
    adapted.unload()


def _loss(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean loss of the tokens that count; logits are computed for those alone."""
    wanted = labels[:, 1:] != IGNORED
    states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # type: ignore[no-untyped-call]
    logits = model.get_output_embeddings()(states[wanted])  # type: ignore[no-untyped-call]
    return functional.cross_entropy(logits, labels[:, 1:][wanted])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_FILE", help="the chat model")
    parser.add_argument("--text", required=True, type=Path, metavar="FILE", help="text of the domain")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of both adapters")
    parser.add_argument("--parts", nargs="+", choices=("task", "domain"), default=("task", "domain"), metavar="PART")
    parser.add_argument("--steps", type=int, default=200, help="of each training at most (200)")
    parser.add_argument("--minutes", type=float, default=12.0, help="of each training at most (12)")
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate (1e-3)")
    parser.add_argument("--rows", type=int, nargs=2, default=(16, 3), metavar="N", help="texts in a step (16 3)")
    parser.add_argument("--width", type=int, default=256, help="tokens of a window of the text (256)")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Train both adapters."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    tokenizer = read_tokenizer(args.model)
    model = load_reference(args.model, ())
    model.requires_grad_(False)
    training = Training(steps=args.steps, minutes=args.minutes, rate=args.rate)
    supplies = {
        "task": lambda: task_batches(tokenizer, args.rows[0], 0),
        "domain": lambda: domain_batches(tokenizer, args.text.read_text(), args.rows[1], args.width, 0),
    }
    base = open_checkpoint(args.model).name
    for part in args.parts:
        train(model, supplies[part](), training, args.output / part, base, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(str(error))
