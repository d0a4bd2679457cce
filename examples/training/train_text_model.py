"""Trains the text model from scratch, on two CPU cores or a GPU, on the sources of the running Python.

Run `python examples/training/train_text_model.py --compile --output DIR`; `--steps 2` is a smoke test. `--held-out FILE` also
writes text on which the model is never trained, for `enginewright eval ENGINE --suite perplexity --data FILE`.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from fit import Batch, fit, muon_and_adamw
from text_corpus import documents, held_out_text
from text_tokenizer import train_tokenizer
from tiny_qwen3 import save, tiny_qwen3
from transformers import GenerationConfig, PreTrainedTokenizerFast

VOCAB_SIZE = 2048
CONTEXT_LENGTH = 1024  # also the length of every training row
ROWS = 8
PEAK_RATE = 3e-3


def main() -> None:
    """Train a model with the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the trained model to")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of 8192 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="train three times faster; needs a C++ compiler")
    parser.add_argument("--held-out", type=Path, help="file to write held-out text to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.held_out:
        arguments.held_out.write_text(held_out_text(), encoding="utf-8")
    train(arguments.output, steps=arguments.steps, seed=arguments.seed, compiled=arguments.compile)


def train(output: Path, *, steps: int, seed: int, compiled: bool) -> None:
    """Train a tokenizer and a model, and write them as a Hugging Face folder."""
    torch.manual_seed(seed)
    texts = [document.text for document in documents() if not document.held_out]
    tokenizer = train_tokenizer(texts, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)
    model = tiny_qwen3(tokenizer, CONTEXT_LENGTH)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=0.8, max_new_tokens=256, eos_token_id=tokenizer.eos_token_id
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    supply = batches(tokenizer, texts, seed)
    optimizers = muon_and_adamw(model, PEAK_RATE)
    fit(model, supply, optimizers, steps=steps, compiled=compiled, after_step=lambda _: None)
    save(model, tokenizer, output)


def batches(tokenizer: PreTrainedTokenizerFast, texts: list[str], seed: int) -> Iterator[Batch]:
    """Yield endless batches of `ROWS` rows: all documents joined, in a new order and cut at new places in every round."""
    rng = random.Random(f"text {seed}")
    encoded = [torch.tensor([tokenizer.eos_token_id, *ids]) for ids in tokenizer(texts, verbose=False).input_ids]
    print(f"{sum(map(len, encoded)):,} tokens of text", flush=True)
    while True:
        rng.shuffle(encoded)
        stream = torch.cat(encoded)[rng.randrange(CONTEXT_LENGTH) :]
        rows = stream[: len(stream) // CONTEXT_LENGTH * CONTEXT_LENGTH].view(-1, CONTEXT_LENGTH)
        rows = rows[torch.tensor(rng.sample(range(len(rows)), len(rows)))]
        for step in range(len(rows) // ROWS):
            inputs = rows[step * ROWS : (step + 1) * ROWS]
            yield inputs, inputs


if __name__ == "__main__":
    main()
