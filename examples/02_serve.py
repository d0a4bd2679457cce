"""Serves many callers from one batch: requests join while others run, stream their tokens, and can be cancelled.

python examples/02_serve.py engines/tiny-reasoner
"""

import sys

from enginewright.runtime import Sampling, load

with load(sys.argv[1], max_batch=4) as llm:

    def ask(question: str) -> list[int]:
        return llm.apply_chat_template([{"role": "user", "content": question}])

    long = llm.submit(ask("What is 815 + 199?"), Sampling(max_tokens=200))
    dropped = llm.submit(ask("What can you do?"), Sampling(max_tokens=200, ignore_eos=True))
    for count, token in enumerate(dropped):
        print(token.text, end="", flush=True)
        if count == 10:
            dropped.cancel()  # its row and its cache are free by the next step
    print(f"\n[{dropped.result().finish_reason}]\n")
    print(long.result().text)
