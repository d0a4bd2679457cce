"""Trains the example model from scratch, on a CPU, on problems it generates itself; --evaluate measures the result.

Run `python examples/train_example_model.py --output DIR`; `--steps 5` is a smoke test of a few seconds.
"""

import argparse
from pathlib import Path

import torch
from evaluate_example_model import evaluate_folder
from example_tokenizer import save_tokenizer, train_tokenizer
from fit import batches, fit
from problems import training_problems
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE = 512
CONTEXT_LENGTH = 4096
PEAK_RATE = 2e-3


def main() -> None:
    """Train or evaluate, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, help="folder to write the trained model to")
    action.add_argument("--evaluate", type=Path, help="folder of a trained model to measure")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of 4096 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="train 1.4 times faster; needs a C++ compiler")
    arguments = parser.parse_args()
    if arguments.evaluate:
        evaluate_folder(arguments.evaluate, seed=arguments.seed)
    else:
        train(arguments.output, steps=arguments.steps, seed=arguments.seed, compiled=arguments.compile)


def train(output: Path, *, steps: int, seed: int, compiled: bool) -> None:
    """Train tokenizer and model and write a Hugging Face folder."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH, seed=seed)
    model = Qwen3ForCausalLM(model_config(tokenizer))
    short, long = training_problems(f"short {seed}"), training_problems(f"long {seed}")
    fit(model, batches(tokenizer, short, long, seed), steps=steps, peak_rate=PEAK_RATE, compiled=compiled)
    save(model, tokenizer, output)


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """The architecture: 2.1 million parameters, every matrix side a multiple of 128."""
    return Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write weights as bfloat16, tokenizer, and greedy generation defaults."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=256,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.bfloat16().save_pretrained(output)
    save_tokenizer(tokenizer, output)


if __name__ == "__main__":
    main()
