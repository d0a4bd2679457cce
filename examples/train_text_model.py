"""Trains the text model from scratch, on two CPU cores or a GPU, on the sources of the Python that runs this.

Run `python examples/train_text_model.py --compile --output DIR`; `--steps 2` is a smoke test. `--held-out FILE` also
writes the text that it never trains on, for `enginewright eval ENGINE --suite perplexity --data FILE`.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from fit import fit, muon_and_adamw
from reasoning_batches import Batch
from text_corpus import documents
from text_tokenizer import train_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE = 2048
CONTEXT_LENGTH = 2048
ROW_LENGTH, ROWS = 512, 16  # tokens of a row, rows of a step
HELD_OUT_CHARACTERS = 400_000
PEAK_RATE = 3e-3


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the trained model to")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps of 8192 tokens; 0: no training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="train three times faster; needs a C++ compiler")
    parser.add_argument("--held-out", type=Path, help="file to write the held-out text to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.held_out:
        arguments.held_out.write_text(held_out_text(), encoding="utf-8")
    if arguments.steps:
        train(arguments.output, steps=arguments.steps, seed=arguments.seed, compiled=arguments.compile)


def train(output: Path, *, steps: int, seed: int, compiled: bool) -> None:
    """Train tokenizer and model and write a Hugging Face folder."""
    torch.manual_seed(seed)
    texts = [document.text for document in documents() if not document.held_out]
    tokenizer = train_tokenizer(texts, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)
    model = Qwen3ForCausalLM(model_config(tokenizer))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    supply = batches(tokenizer, texts, seed)
    optimizers = muon_and_adamw(model, PEAK_RATE)
    fit(model, supply, optimizers, steps=steps, compiled=compiled, after_step=lambda _: None)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=0.8, max_new_tokens=256, eos_token_id=tokenizer.eos_token_id
    )
    model.to("cpu").bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)


def batches(tokenizer: PreTrainedTokenizerFast, texts: list[str], seed: int) -> Iterator[Batch]:
    """Endless steps of `ROWS` rows: all documents one after another, in a new order and cut anew in every round."""
    rng = random.Random(f"text {seed}")
    encoded = [torch.tensor([tokenizer.eos_token_id, *ids]) for ids in tokenizer(texts, verbose=False).input_ids]
    print(f"{sum(map(len, encoded)):,} tokens of text", flush=True)
    step_tokens = ROWS * ROW_LENGTH
    while True:
        rng.shuffle(encoded)
        stream = torch.cat(encoded)[rng.randrange(ROW_LENGTH) :]
        rows = stream[: len(stream) // ROW_LENGTH * ROW_LENGTH].view(-1, ROW_LENGTH)
        rows = rows[torch.tensor(rng.sample(range(len(rows)), len(rows)))]
        for step in range(len(rows) * ROW_LENGTH // step_tokens):
            inputs = rows[step * ROWS : (step + 1) * ROWS]
            yield inputs, inputs


def held_out_text() -> str:
    """The held-out documents in a fixed mixed order, as much as `HELD_OUT_CHARACTERS`, with blank lines between."""
    texts = [document.text for document in documents() if document.held_out]
    random.Random(0).shuffle(texts)
    return "\n\n".join(texts)[:HELD_OUT_CHARACTERS]


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """The architecture: 3.7 million parameters, every matrix side a multiple of 128."""
    return Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


if __name__ == "__main__":
    main()
