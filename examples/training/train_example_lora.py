"""Trains a LoRA adapter that teaches the example model another style: replies that end in "Result: X.".

Run `python examples/training/train_example_lora.py --base examples/tiny-reasoner --output DIR`; it needs `pip install peft`.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fit import fit
from peft import LoraConfig, get_peft_model
from reasoning_batches import batches
from transformers import AutoModelForCausalLM, AutoTokenizer

from enginewright.runtime.evaluation.problems import Problem, training_problems

PEAK_RATE = 5e-3


def main() -> None:
    """Train an adapter with the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the example model")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the adapter to")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of 8192 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.base, arguments.output, steps=arguments.steps, seed=arguments.seed)


def restyled_problems(seed: int) -> Iterator[Problem]:
    """Yield standard problems whose solutions end in the new style."""
    for problem in training_problems(f"adapter {seed}", hard_share=0.0):
        yield dataclasses.replace(problem, solution=problem.solution.replace("\nAnswer: ", "\nResult: "))


def train(base: Path, output: Path, *, steps: int, seed: int) -> None:
    """Train an adapter on all linear layers and write it in PEFT's format, as bfloat16."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    supply = batches(tokenizer, restyled_problems(seed), seed)
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # PEFT changes the model's layers in place, so `fit` gets the model itself
    optimizer = torch.optim.AdamW(adapters, lr=PEAK_RATE)
    fit(model, supply, [optimizer], steps=steps, compiled=False, after_step=lambda _: None)
    adapted.peft_config["default"].base_model_name_or_path = base.name
    adapted.bfloat16().save_pretrained(str(output))
    (output / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card


if __name__ == "__main__":
    main()
