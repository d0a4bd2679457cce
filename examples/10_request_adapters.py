"""Builds an engine whose requests choose adapters, loads one while it serves, and asks with and without it in one batch.

python examples/10_request_adapters.py

The adapter is the repository's own for tiny-reasoner: it changes how answers are worded.
"""

import sys
import tempfile
from pathlib import Path

from enginewright.runtime import Sampling, cli, load

HERE = Path(__file__).parent
engine = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "engine"

building = ["build", "--model", str(HERE / "tiny-reasoner"), "--output", str(engine), "--max-context", "512"]
if cli.main([*building, "--apply", "adapters:capacity=2,rank=8"]):
    sys.exit(1)

with load(engine) as llm:
    question = llm.apply_chat_template([{"role": "user", "content": "What is 47 + 385?"}])
    name = llm.load_adapter(HERE / "tiny-reasoner-lora", "style")
    samplings = [Sampling(max_tokens=200), Sampling(max_tokens=200, adapter=name)]
    for sampling, done in zip(samplings, llm.generate([question] * 2, samplings), strict=True):
        print(f"{sampling.adapter or 'none'}: {done.text!r}")
    llm.drop_adapter(name)
    print("left:", llm.adapters)
