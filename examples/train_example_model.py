"""Trains the example model from scratch, on a CPU, on problems it generates itself; --evaluate measures the result.

    python examples/train_example_model.py --output /tmp/tiny-arith              # about half an hour on two cores
    python examples/train_example_model.py --output /tmp/tiny-arith --steps 5    # a smoke test
    python examples/train_example_model.py --evaluate examples/tiny-arith
"""

import argparse
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from evaluate_example_model import print_accuracy
from example_tokenizer import END, SYSTEM_PROMPTS, save_tokenizer, train_tokenizer
from problems import Problem, training_problems
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE = 512
CONTEXT_LENGTH = 4096
ROW_LENGTH = 512  # tokens in one training row: several problems, read by the model as the turns of one chat
ROWS_PER_STEP = 8
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
IGNORED = -100  # the label that the loss skips
Encoded = tuple[list[int], list[int]]  # token ids and labels, equally long


def main() -> None:
    """Train or evaluate, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, help="folder to write the trained model to")
    action.add_argument("--evaluate", type=Path, help="folder of a trained model to measure")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps of 4096 tokens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.evaluate:
        print_accuracy(arguments.evaluate, seed=arguments.seed)
    else:
        train(arguments.output, steps=arguments.steps, seed=arguments.seed)


def train(output: Path, *, steps: int, seed: int) -> None:
    """Train tokenizer and model and write a Hugging Face folder."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH, seed=seed)
    model = Qwen3ForCausalLM(model_config(tokenizer))
    fit(model, training_rows(tokenizer, seed), steps=steps, peak_learning_rate=PEAK_LEARNING_RATE)
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


def fit(model: torch.nn.Module, rows: Iterator[Encoded], *, steps: int, peak_learning_rate: float) -> None:
    """Minimise the loss over the replies with AdamW, a linear warm-up and a cosine decay to 2 % of the peak."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_learning_rate, betas=(0.9, 0.98), fused=True)
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup), 0.02 * peak_learning_rate),
        ],
        [warmup],
    )
    model.train()
    began = time.monotonic()
    for step in range(1, steps + 1):
        inputs, labels = (torch.tensor(column) for column in zip(*[next(rows) for _ in range(ROWS_PER_STEP)], strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps:
            elapsed = time.monotonic() - began
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {elapsed:.0f} s", flush=True)


def training_rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Encoded]:
    """Endless rows of exactly `ROW_LENGTH` tokens: whole problems back to back, the rest padding."""
    return pack(tokenizer, training_problems(seed), seed)


def pack(tokenizer: PreTrainedTokenizerFast, problems: Iterable[Problem], seed: int) -> Iterator[Encoded]:
    """Rows of `ROW_LENGTH` tokens; a problem that does not fit any more starts the next row."""
    rng = random.Random(seed)
    row: Encoded = ([], [])
    for problem in problems:
        ids, labels = encode(tokenizer, problem)
        if len(row[0]) + len(ids) > ROW_LENGTH:
            padding = ROW_LENGTH - len(row[0])
            yield row[0] + [tokenizer.pad_token_id] * padding, row[1] + [IGNORED] * padding
            system = tokenizer.encode(_turn("system", rng.choice(SYSTEM_PROMPTS))) if rng.random() < 0.25 else []
            row = (system, [IGNORED] * len(system))
        row = (row[0] + ids, row[1] + labels)


def encode(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> Encoded:
    """One question and answer as the chat template writes them; only the reply and its end token carry labels."""
    question = tokenizer.encode(_turn("user", problem.prompt) + "<|im_start|>assistant\n")
    reply, newline = tokenizer.encode(problem.reply + END), tokenizer.encode("\n")
    return question + reply + newline, [IGNORED] * len(question) + reply + [IGNORED] * len(newline)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write weights as bfloat16, tokenizer, and greedy generation defaults."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=256,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(output)
    save_tokenizer(tokenizer, output)


def _turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


if __name__ == "__main__":
    main()
