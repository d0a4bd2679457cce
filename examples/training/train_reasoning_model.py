"""Trains the reasoning model from scratch, on two CPU cores or a GPU, on problems with worked solutions.

Run `python examples/training/train_reasoning_model.py --compile --output DIR`; `--steps 2` is a smoke test.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from fit import Batch, fit, muon_and_adamw
from reasoning_batches import batches
from reasoning_start import look_back
from reasoning_tokenizer import train_tokenizer
from tiny_qwen3 import save, tiny_qwen3
from transformers import GenerationConfig, PreTrainedTokenizerFast

from enginewright.runtime.evaluation.problems import training_problems

VOCAB_SIZE = 1024
CONTEXT_LENGTH = 4096
LONGEST_REPLY = 2048
PEAK_RATE = 3e-3
SHORT_SHARE = 0.15  # the first part of all steps, which see only problems of the standard level's size


def main() -> None:
    """Train a model with the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the trained model to")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of 8192 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="train three times faster; needs a C++ compiler")
    parser.add_argument("--save-every", type=int, default=0, help="also write the model every so many steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(
        arguments.output,
        steps=arguments.steps,
        seed=arguments.seed,
        compiled=arguments.compile,
        save_every=arguments.save_every,
    )


def train(output: Path, *, steps: int, seed: int, compiled: bool, save_every: int) -> None:
    """Train a tokenizer and a model, and write them as a Hugging Face folder."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH, seed=seed)
    model = tiny_qwen3(tokenizer, CONTEXT_LENGTH)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=LONGEST_REPLY,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    look_back(model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)

    def save_now_and_then(step: int) -> None:
        if save_every and step % save_every == 0 and step < steps:
            save(model, tokenizer, output)

    supply = curriculum(tokenizer, steps, seed)
    optimizers = muon_and_adamw(model, PEAK_RATE)
    fit(model, supply, optimizers, steps=steps, compiled=compiled, after_step=save_now_and_then)
    save(model, tokenizer, output)


def curriculum(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[Batch]:
    """Yield batches of short problems for the first steps, then of problems of all sizes."""
    short = batches(tokenizer, training_problems(f"short {seed}", hard_share=0.0), seed)
    yield from islice(short, round(SHORT_SHARE * steps))
    yield from batches(tokenizer, training_problems(f"all {seed}"), seed)


if __name__ == "__main__":
    main()
