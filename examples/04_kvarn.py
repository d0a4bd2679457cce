"""Asks many questions about one long table, over a cache of four bits for keys and two for values.

python build_engine.py --model examples/tiny-reasoner --output engines/kvarn --apply kvarn:k_bits=4,v_bits=2
python examples/04_kvarn.py engines/kvarn

Every question begins with the same table, so after the first question the table's whole chunks of 512 tokens are in the cache
already. Any other engine runs this example, too; compare the first line of its output.
"""

import sys

from enginewright.runtime import Sampling, load
from enginewright.runtime.cache.capacity import request_bytes
from enginewright.runtime.evaluation.problems import held_out_problems

*TABLE, _ = held_out_problems("retrieval", "hard", 1, seed=0)[0].question.splitlines()
KEYS = [entry.partition("=")[0] for entry in TABLE]

with load(sys.argv[1]) as llm:
    cache = llm.manifest.cache
    print(f"{cache.kind} cache: {request_bytes(cache, 4096) / 2**20:.1f} MiB for a request of 4096 tokens\n")
    for first in range(0, 40, 8):
        asked = " ".join(f"{letter}:{key}" for letter, key in zip("ABCDEFGH", KEYS[first : first + 8], strict=True))
        question = "\n".join([*TABLE, f"{asked}. Find each number."])
        prompt = llm.apply_chat_template([{"role": "user", "content": question}])
        completion = llm.generate([prompt], Sampling(max_tokens=300))[0]
        print(
            f"{completion.text.splitlines()[-1]}\n[{completion.reused_tokens} of {len(prompt)} prompt tokens reused]\n"
        )
