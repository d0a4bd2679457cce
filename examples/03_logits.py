"""Scores a text: computes the teacher-forced logits of every position, and the text's perplexity.

python examples/03_logits.py engines/tiny-reasoner
"""

import sys

import numpy as np

from enginewright.runtime import load

with load(sys.argv[1]) as llm:
    tokens = llm.apply_chat_template([{"role": "user", "content": "What is 2 + 2?"}])
    logits = llm.logits(tokens)  # float32 [n, vocab]
    shifted = logits[:-1] - logits[:-1].max(-1, keepdims=True)
    scores = (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))[np.arange(len(tokens) - 1), tokens[1:]]
    print(f"{len(tokens)} tokens, perplexity {np.exp(-scores.mean()):.2f}")
