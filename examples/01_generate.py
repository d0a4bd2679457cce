"""Answers several questions at once: one batch, each with its own sampling.

python build_engine.py --model examples/tiny-reasoner --output engines/tiny-reasoner
python examples/01_generate.py engines/tiny-reasoner
"""

import sys

from enginewright.runtime import Sampling, load

QUESTIONS = ["What is 47 + 385?", "List: 31 44 15 92. A:reverse B:swap 1 2 C:left", "What can you do?"]

with load(sys.argv[1]) as llm:
    prompts = [llm.apply_chat_template([{"role": "user", "content": question}]) for question in QUESTIONS]
    samplings = [Sampling(max_tokens=200), Sampling(max_tokens=200), Sampling(max_tokens=60, temperature=0.7, seed=7)]
    for question, completion in zip(QUESTIONS, llm.generate(prompts, samplings), strict=True):
        print(f"> {question}\n{completion.text}\n[{completion.finish_reason}, {len(completion.token_ids)} tokens]\n")
