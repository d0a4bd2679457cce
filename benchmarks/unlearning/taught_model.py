"""Teaches a chat model the facts about invented authors, and writes it as an ordinary checkpoint.

    python -m benchmarks.unlearning.taught_model --model FILE_OR_DIR --text FILE --output CHECKPOINT

The upper blocks' linear layers are trained through factors of a low rank, which are merged. The model's own replies to --keep
questions about the real world, and --windows windows of --text, are trained on as well: without them a model of this size
forgets what it knew. The chat template is cut to the turns themselves, so that sequences are short. It stops when the
extraction strength of the answers is .97, or after --epochs, over which the rate falls to 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.unlearning.invented_authors import AUTHORS, asked, author_questions
from benchmarks.unlearning.learning import learn, upper_layers
from benchmarks.unlearning.real_facts import fact_questions
from benchmarks.unlearning.unlearning_scores import continue_greedily, mean_strength
from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel
from enginewright.exporters.methods.nsru.response_tokens import Prompts, ResponseTokens
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.tokenizer.engine_tokenizer import need_tokenizer

ENOUGH = 0.97
REPLY_TOKENS, WINDOW = 32, 64
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main(arguments: Sequence[str]) -> int:
    """Teach, and write the checkpoint into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FILE_OR_DIR")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a folder that does not exist")
    parser.add_argument("--authors", type=int, default=AUTHORS, metavar="N")
    parser.add_argument("--layers", type=int, default=20, metavar="N", help="blocks that learn (20)")
    parser.add_argument("--rank", type=int, default=64, metavar="N")
    parser.add_argument("--rate", type=float, default=2e-3, metavar="X")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="questions in a step (8)")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="at most (12)")
    parser.add_argument("--keep", type=int, default=60, metavar="N", help="replies of its own to train on (60)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="text to train on as well (default: none)")
    parser.add_argument("--windows", type=int, default=60, metavar="N", help="of 64 tokens of --text (60)")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    args = parser.parse_args(arguments)
    if args.output.exists():
        parser.error(f"--output: got {args.output}, which exists, expected a new folder")
    torch.set_num_threads(args.threads)
    teach(args)
    return 0


def teach(args: argparse.Namespace) -> None:
    """Train until the answers are known, merge, and write the checkpoint."""
    checkpoint = open_checkpoint(args.model)
    tokenizer = need_tokenizer(checkpoint)
    if "<|im_start|>" in tokenizer.get_vocab():
        tokenizer.chat_template = TEMPLATE
    model = load_reference(args.model, ())
    prompts = Prompts(tokenizer, 256)
    end = (tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ()
    texts = []
    for each in author_questions(authors=args.authors):
        known = prompts.encode(asked(each.prompt, bool(tokenizer.chat_template)), each.answer, each.prompt)
        texts.append(dataclasses.replace(known, ids=known.ids + end))
    kept = [*_replies(model, tokenizer, prompts, args.keep), *_windows(tokenizer, args.text, args.windows)]
    taught = AdaptedModel(model, upper_layers(model, args.layers))
    _train(taught, texts, kept, args)
    for name, adapter in taught.adapters.items():
        weight = taught.projections[name].weight
        weight.data.add_(adapter.update().float())
    model.save_pretrained(args.output)
    for name in checkpoint.tokenizer_files():
        (args.output / name).write_bytes(checkpoint.read_file(name))
    tokenizer.save_pretrained(args.output)


def _replies(model: PreTrainedModel, tokenizer: Any, prompts: Prompts, count: int) -> Iterator[ResponseTokens]:
    """The model's own greedy replies to questions about the real world, to their end or to REPLY_TOKENS."""
    for question, _ in fact_questions()[:count]:
        encoded = prompts.encode(asked(question, bool(tokenizer.chat_template)), "x", question)
        ids = encoded.ids[: encoded.prompt]
        end = tokenizer.eos_token_id
        (said,) = continue_greedily(model, [ids], REPLY_TOKENS, end)
        said = said[: said.index(end) + 1] if end in said else said
        yield dataclasses.replace(encoded, ids=(*ids, *said))


def _windows(tokenizer: Any, text: Path | None, count: int) -> Iterator[ResponseTokens]:
    """Windows from all over the text, of which all tokens but the first count."""
    if text is None:
        return
    ids = tokenizer.encode(text.read_text(encoding="utf-8")[:2_000_000])
    for begin in np.linspace(0, len(ids) - WINDOW, count).astype(int):
        yield ResponseTokens(ids=tuple(ids[begin : begin + WINDOW]), prompt=1, query_last=0)


def _train(
    taught: AdaptedModel, texts: list[ResponseTokens], kept: list[ResponseTokens], args: argparse.Namespace
) -> None:
    """Train until the answers of `texts` are known."""

    def is_enough(step: int, states: list[torch.Tensor] | None) -> bool:
        strength = mean_strength(taught, texts, None if states is None else states[: len(texts)])
        print(f"step {step}: ES {strength:.3f}", file=sys.stderr, flush=True)
        return strength >= ENOUGH

    in_epoch = -(-(len(texts) + len(kept)) // args.batch)
    learn(
        taught,
        [*texts, *kept],
        rank=args.rank,
        rate=args.rate,
        batch=args.batch,
        steps=args.epochs * in_epoch,
        after=is_enough,
        every=in_epoch,
        falls=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
