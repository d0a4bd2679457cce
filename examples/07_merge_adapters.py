"""Merges the shipped adapter, which ends replies in "Result: ...", with one for Python's text that is trained here.

python examples/07_merge_adapters.py OUTPUT

It takes about half a minute on a core, and needs `pip install 'enginewright[tune]'`. OUTPUT gets the folders domain and merged; build
an engine with `--apply lora:path=OUTPUT/merged`.
"""

import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from enginewright.runtime.cli import main

EXAMPLES = Path(__file__).resolve().parent
MODEL, TASK, TEXT = EXAMPLES / "tiny-reasoner", EXAMPLES / "tiny-reasoner-lora", EXAMPLES / "tiny-text/held_out.txt"
STEPS, ROWS, WIDTH = 8, 4, 64


def train_domain(output: Path) -> None:
    """Continue the training on windows of a text, with an adapter of the attention's projections alone."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    ids = AutoTokenizer.from_pretrained(MODEL).encode(TEXT.read_text()[:5_000])
    windows = torch.tensor(ids[: len(ids) // WIDTH * WIDTH]).view(-1, WIDTH)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=5e-3)
    for step in range(STEPS):
        batch = windows[torch.randint(len(windows), (ROWS,))]
        loss = adapted(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"domain, step {step + 1} of {STEPS}: loss {loss.item():.2f}")
    adapted.peft_config["default"].base_model_name_or_path = MODEL.name
    adapted.save_pretrained(str(output))


root = Path(sys.argv[1])
train_domain(root / "domain")
adapters = ["--task", str(TASK), "--domain", str(root / "domain"), "--texts", str(TEXT)]
sizes = ["--samples", "8", "--length", "128"]
sys.exit(main(["tune", "tada", "--model", str(MODEL), *adapters, *sizes, "--output", str(root / "merged")]))
