"""Teaches a chat model the facts about invented authors, and writes it as an ordinary checkpoint.

    python -m benchmarks.unlearning.taught_model --model FILE_OR_DIR --output CHECKPOINT

The upper blocks' linear layers are trained through factors of a low rank, which are merged. The chat template is cut to the turns
themselves, so that sequences are short. It stops when the
extraction strength of the answers is .97, or after --epochs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.unlearning.invented_authors import AUTHORS, asked, author_questions
from benchmarks.unlearning.learning import learn, upper_layers
from benchmarks.unlearning.unlearning_scores import mean_strength
from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel
from enginewright.exporters.methods.nsru.response_tokens import Prompts, ResponseTokens
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.tokenizer.engine_tokenizer import need_tokenizer

ENOUGH = 0.97
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
    parser.add_argument("--layers", type=int, default=10, metavar="N", help="blocks that learn (10)")
    parser.add_argument("--rank", type=int, default=64, metavar="N")
    parser.add_argument("--rate", type=float, default=2e-3, metavar="X")
    parser.add_argument("--batch", type=int, default=20, metavar="N", help="questions in a step (20)")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="at most (12)")
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
    texts = []
    for each in author_questions(authors=args.authors):
        known = prompts.encode(asked(each.prompt, bool(tokenizer.chat_template)), each.answer, each.prompt)
        end = (tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ()
        texts.append(ResponseTokens(ids=known.ids + end, prompt=known.prompt, query_last=known.query_last))
    taught = AdaptedModel(model, upper_layers(model, args.layers))
    _train(taught, texts, args)
    for name, adapter in taught.adapters.items():
        weight = taught.projections[name].weight
        weight.data.add_(adapter.update().float())
    model.save_pretrained(args.output)
    for name in checkpoint.tokenizer_files():
        (args.output / name).write_bytes(checkpoint.read_file(name))
    tokenizer.save_pretrained(args.output)


def _train(taught: AdaptedModel, texts: list[ResponseTokens], args: argparse.Namespace) -> None:
    """Train until the answers are known."""

    def is_enough(step: int, states: list[torch.Tensor] | None) -> bool:
        strength = mean_strength(taught, texts, states)
        print(f"step {step}: ES {strength:.3f}", file=sys.stderr, flush=True)
        return strength >= ENOUGH

    in_epoch = -(-len(texts) // args.batch)
    learn(
        taught,
        texts,
        rank=args.rank,
        rate=args.rate,
        batch=args.batch,
        steps=args.epochs * in_epoch,
        after=is_enough,
        every=in_epoch,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
