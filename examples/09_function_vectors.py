"""Makes a function vector on a bundled model, builds an engine that adds it, and asks with and without it in one batch.

python examples/09_function_vectors.py

The task is to answer with a number. The model is tiny: it has learned the Python documentation, and what it can be steered to
is no more than this. `docs/methods/function_vectors.md` has tasks of real models.
"""

import json
import sys
import tempfile
from pathlib import Path

from enginewright.runtime import Sampling, cli, load

MODEL = str(Path(__file__).parent / "tiny-text")

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
task, vectors, engine = folder / "number.json", folder / "number", folder / "engine"
task.write_text(json.dumps([{"input": str(n), "output": str(n)} for n in range(1, 40)]))

making = ["tune", "function-vector", "--model", MODEL, "--task", str(task), "--output", str(vectors)]
building = ["build", "--model", MODEL, "--output", str(engine), "--apply", "steering", "--max-context", "128"]
for command in ([*making, "--shots", "6", "--heads", "4"], building):
    if cli.main(command):
        sys.exit(1)

with load(engine) as llm:
    name = llm.load_vector(vectors)
    samplings = [
        Sampling(max_tokens=4, temperature=0),
        Sampling(max_tokens=4, temperature=0, vector=name),
        Sampling(max_tokens=4, temperature=0, vector=name, vector_scale=2),
    ]
    for question in ("Q: 17\nA:", "Q: file\nA:"):
        for sampling, done in zip(samplings, llm.generate([question] * 3, samplings), strict=True):
            print(
                f"{question!r} {f'with {sampling.vector} x {sampling.vector_scale}' if sampling.vector else 'plain'}: {done.text!r}"
            )
