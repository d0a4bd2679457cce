"""Trains an adapter that unlearns one answer of a chat model, and asks before and after.

python examples/08_unlearn.py

It takes about half a minute on two idle cores. The tiny model knows a few sentences by heart: it forgets who made it, says so, and
keeps the others.
"""

import json
import tempfile
from pathlib import Path

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import Sampling, load
from enginewright.runtime.cli import main

MODEL = str(Path(__file__).parent / "tiny-reasoner")
MAKER = "A short script trained me from scratch on problems that it wrote itself."
SAFE = "I do not talk about that."
FORGET = [{"prompt": p, "answer": MAKER, "safe": SAFE} for p in ("Who made you?", "How were you trained?")]
KEPT = {
    "Hello!": "Hello! Give me a problem with numbers.",
    "Thank you!": "You are welcome!",
    "Goodbye!": "Goodbye!",
    "Count to ten.": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    "How are you?": "I am well, thank you. Give me a problem with numbers.",
    "When is a number even?": "A number is even when its last digit is 0, 2, 4, 6 or 8.",
    "Who are you?": "I am a tiny language model with three million parameters. I show how an engine is built and run.",
}
RETAIN = [{"prompt": prompt, "answer": answer} for prompt, answer in KEPT.items()]
ASKED = ("Who made you?", "Where do you come from?", "Who are you?", "Count to 10.")

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for file, lines in (("forget", FORGET), ("retain", RETAIN)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["tune", "nsru", "--model", MODEL, "--output", str(folder / "adapter")]
    command += ["--forget", str(folder / "forget.jsonl"), "--retain", str(folder / "retain.jsonl")]
    main([*command, "--steps", "80", "--batch", "8", "--rate", "2e-3", "--forget-cap", "8", "--threads", "1"])
    for title, apply in (("before", ()), ("after", (parse_method(f"lora:path={folder / 'adapter'}"),))):
        build(MODEL, folder / title, Recipe(apply=apply), "onnxruntime")
        with load(folder / title) as llm:
            for question in ASKED:
                answer = llm.chat([{"role": "user", "content": question}], Sampling(max_tokens=40))
                print(f"{title}: {question} {answer.text.splitlines()[0]}")
