"""Trains a LoRA adapter that teaches the example model one new skill: sorting from large to small.

Run `python examples/train_example_lora.py --base examples/tiny-arith --output DIR`; it needs `pip install peft`.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from evaluate_example_model import print_accuracy
from fit import batches, fit
from peft import LoraConfig, PeftModel, get_peft_model
from problems import KINDS, Problem, solved, training_problems
from transformers import AutoModelForCausalLM, AutoTokenizer

PEAK_RATE = 2e-3


def main() -> None:
    """Train or evaluate, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the example model")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, help="folder to write the adapter to")
    action.add_argument("--evaluate", type=Path, help="folder of an adapter to measure, beside the bare model")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of 4096 tokens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.evaluate:
        evaluate(arguments.base, arguments.evaluate, seed=arguments.seed)
    else:
        train(arguments.base, arguments.output, steps=arguments.steps, seed=arguments.seed)


def sort_descending(rng: random.Random) -> Problem:
    """Three to five different two-digit numbers in descending order, by repeatedly taking the largest."""
    rest = rng.sample(range(10, 100), rng.randint(3, 5))
    ordered = sorted(rest, reverse=True)
    prompt, lines = f"Sort {', '.join(map(str, rest))} from large to small.", []
    for largest in ordered:
        lines.append(f"{' '.join(map(str, rest))}: {largest}.")
        rest.remove(largest)
    return solved("sort_descending", prompt, lines, ", ".join(map(str, ordered)))


def adapter_problems(seed: str) -> Iterator[Problem]:
    """The new skill and the old ones by turns, so that the adapter does not unlearn them."""
    rng, known = random.Random(seed), training_problems(seed)
    while True:
        problem = sort_descending(rng)
        if not problem.held_out:
            yield problem
        yield next(known)


def train(base: Path, output: Path, *, steps: int, seed: int) -> None:
    """Train an adapter on all linear layers and write it in PEFT's format, as bfloat16."""
    torch.manual_seed(seed)
    tokenizer, model = _load(base)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    rows = batches(tokenizer, adapter_problems(f"short {seed}"), adapter_problems(f"long {seed}"), seed)
    fit(adapted, rows, steps=steps, peak_rate=PEAK_RATE)
    adapted.peft_config["default"].base_model_name_or_path = base.name
    adapted.bfloat16().save_pretrained(str(output))
    (output / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card


def evaluate(base: Path, adapter: Path, *, seed: int) -> None:
    """Print the accuracy on the new skill without and with the adapter, and on the known kinds with it."""
    tokenizer, model = _load(base)
    print("Without the adapter:")
    print_accuracy(model, tokenizer, {"sort_descending": sort_descending}, seed=seed)
    print("With the adapter:")
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    print_accuracy(adapted, tokenizer, {"sort_descending": sort_descending, **KINDS}, seed=seed)


def _load(base: Path) -> tuple[Any, Any]:
    """The tokenizer, and the model in float32."""
    return AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


if __name__ == "__main__":
    main()
