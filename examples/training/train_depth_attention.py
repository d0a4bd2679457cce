"""Trains a small text model in three ways from equal initial weights on equal batches, and compares the held-out losses.

    vanilla            values as they are
    uniform mix        each layer's value averaged with those of the source layers: the effect of mixing alone
    Depth-Attention    the same values weighted by query and key

Run `python examples/training/train_depth_attention.py --output DIR`; `--steps 2 --seeds 1` is a smoke test. The script writes
the Depth-Attention model of the first seed to DIR. Its config contains `depth_attention`, and engines built from it mix values.
The spread over seeds is the noise: smaller differences mean nothing.
"""

import argparse
import itertools
import math
import statistics
from pathlib import Path

import torch
from fit import Batch, fit, muon_and_adamw
from text_corpus import documents, held_out_text
from text_tokenizer import train_tokenizer
from tiny_qwen3 import save, tiny_config
from torch.nn import functional
from train_text_model import batches
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from enginewright.exporters.features.depth_attention.reference import add_depth_attention, mix_by_softmax, mix_evenly
from enginewright.exporters.features.depth_attention.rule import Mix, read_depth_attention

VARIANTS: dict[str, Mix | None] = {"vanilla": None, "uniform mix": mix_evenly, "Depth-Attention": mix_by_softmax}
VOCAB_SIZE, CONTEXT_LENGTH = 2048, 1024
LAYERS = 8
PEAK_RATE = 3e-3


def main() -> None:
    """Train all models with the command line's settings, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write a trained model to")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of 8192 tokens for each model")
    parser.add_argument("--seeds", type=int, default=3, help="number of models of each kind")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = [document.text for document in documents() if not document.held_out]
    tokenizer = train_tokenizer(texts, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)
    held_out = rows_of(tokenizer, held_out_text())
    losses: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for seed in range(arguments.seeds):
        supply = list(itertools.islice(batches(tokenizer, texts, seed), arguments.steps))
        for name, mix in VARIANTS.items():
            model = make_model(tokenizer, mix, seed)
            train(model, supply)
            losses[name].append(evaluate(model, held_out))
            print(f"seed {seed}  {name}: {losses[name][-1]:.4f} nats per token of held-out text", flush=True)
            if mix is mix_by_softmax and seed == 0:
                save(model, tokenizer, arguments.output)
    print(table(losses))


def make_model(tokenizer: PreTrainedTokenizerFast, mix: Mix | None, seed: int) -> Qwen3ForCausalLM:
    """A random model of 1.6 million parameters besides the embedding, the same for every kind of mixing."""
    config = tiny_config(
        tokenizer,
        CONTEXT_LENGTH,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=LAYERS,
        head_dim=32,
        **({} if mix is None else {"depth_attention": {"stride": LAYERS // 2, "recent": 0}}),
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    depth = read_depth_attention(config)
    if depth is not None and mix is not None:
        add_depth_attention(model, depth, base="sdpa", mix=mix)
    return model


def train(model: Qwen3ForCausalLM, supply: list[Batch]) -> None:
    """Make one pass over the batches, without torch.compile, which takes minutes for models that mix values."""
    optimizers = muon_and_adamw(model, PEAK_RATE)
    fit(model, iter(supply), optimizers, steps=len(supply), compiled=False, after_step=lambda _: None)


def rows_of(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """The text's tokens as rows [n, CONTEXT_LENGTH]."""
    ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
    return ids[: len(ids) // CONTEXT_LENGTH * CONTEXT_LENGTH].view(-1, CONTEXT_LENGTH)


def evaluate(model: Qwen3ForCausalLM, rows: torch.Tensor) -> float:
    """The mean cross-entropy of the rows in nats per token."""
    model.eval()
    losses = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
            losses.append(functional.cross_entropy(logits.float(), row[1:]).item())
    return statistics.fmean(losses)


def table(losses: dict[str, list[float]]) -> str:
    """The table of each kind's loss and its difference from vanilla, seed by seed on equal batches."""
    lines = ["| | loss, mean over seeds | spread (s.d.) | minus vanilla, mean | per seed |", "|---|---|---|---|---|"]
    for name, found in losses.items():
        spread = statistics.stdev(found) if len(found) > 1 else math.nan
        differences = [a - b for a, b in zip(found, losses["vanilla"], strict=True)]
        each = ", ".join(f"{d:+.4f}" for d in differences)
        mean, difference = statistics.fmean(found), statistics.fmean(differences)
        lines.append(f"| {name} | {mean:.4f} | {spread:.4f} | {difference:+.4f} | {each} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
