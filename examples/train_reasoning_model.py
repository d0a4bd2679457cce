"""Trains the reasoning model from scratch, on two CPU cores or a GPU, on problems with worked solutions.

Run `python examples/train_reasoning_model.py --compile --output DIR`; `--steps 2` is a smoke test.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from fit import fit, muon_and_adamw
from reasoning_batches import Batch, batches
from reasoning_start import look_back
from reasoning_tokenizer import save_tokenizer, train_tokenizer
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from enginewright.runtime.evaluation.problems import training_problems

VOCAB_SIZE = 1024
CONTEXT_LENGTH = 4096
LONGEST_REPLY = 2048
SHORT_SHARE = 0.15  # of the steps, at the beginning, that see problems of the standard level's size only


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the trained model to")
    parser.add_argument("--start", type=Path, help="folder of a model to train further, on problems of all sizes")
    parser.add_argument("--peak-rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of 8192 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="train three times faster; needs a C++ compiler")
    parser.add_argument("--save-every", type=int, default=0, help="also write the model every so many steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(
        arguments.output,
        start=arguments.start,
        peak_rate=arguments.peak_rate,
        steps=arguments.steps,
        seed=arguments.seed,
        compiled=arguments.compile,
        save_every=arguments.save_every,
    )


def train(
    output: Path, *, start: Path | None, peak_rate: float, steps: int, seed: int, compiled: bool, save_every: int
) -> None:
    """Train tokenizer and model, or an earlier model further, and write a Hugging Face folder."""
    torch.manual_seed(seed)
    if start:
        tokenizer = AutoTokenizer.from_pretrained(start)
        model = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
        supply = batches(tokenizer, training_problems(f"further {seed}"), seed)
    else:
        tokenizer = train_tokenizer(vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH, seed=seed)
        model = Qwen3ForCausalLM(model_config(tokenizer))
        look_back(model)
        supply = curriculum(tokenizer, steps, seed)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)

    def save_now_and_then(step: int) -> None:
        if save_every and step % save_every == 0 and step < steps:
            save(model, tokenizer, output)

    optimizers = muon_and_adamw(model, peak_rate)
    fit(model, supply, optimizers, steps=steps, compiled=compiled, after_step=save_now_and_then)
    save(model, tokenizer, output)


def curriculum(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[Batch]:
    """Batches of short problems for the first steps, then of all sizes."""
    short = batches(tokenizer, training_problems(f"short {seed}", hard_share=0.0), seed)
    yield from islice(short, round(SHORT_SHARE * steps))
    yield from batches(tokenizer, training_problems(f"all {seed}"), seed)


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """The architecture: 3.4 million parameters, every matrix side a multiple of 128."""
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
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write weights as bfloat16, tokenizer, and greedy generation defaults; the model itself stays as it is."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=LONGEST_REPLY,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    rounded = Qwen3ForCausalLM(model.config).bfloat16()
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = model.generation_config
    rounded.save_pretrained(output)
    save_tokenizer(tokenizer, output)


if __name__ == "__main__":
    main()
