"""Answers questions with heads that guess the tokens after the next one, and prints how many steps they saved.

python build_engine.py --model examples/tiny-reasoner --output engines/clp --apply clp:heads=examples/tiny-reasoner-clp
python examples/05_extra_heads.py engines/clp

The guesses stand unchecked. With `,verify=true` after the heads' folder, the model checks them, and every answer is the same
as without heads. Any other engine runs this example, too, but saves no steps.
"""

import sys

from enginewright.runtime import Sampling, load
from enginewright.runtime.evaluation.problems import KINDS, held_out_problems

with load(sys.argv[1]) as llm:
    verified = bool(llm.manifest.decoding.get("verify"))
    for kind in KINDS:
        problem = held_out_problems(kind, "standard", 1, seed=3)[0]
        completion = llm.chat([{"role": "user", "content": problem.question}], Sampling(max_tokens=400))
        tokens = len(completion.token_ids)
        saved = completion.agreed_tokens if verified else completion.guessed_tokens
        print(f"{problem.question}\n{completion.text.splitlines()[-1]}")
        print(
            f"[{tokens} tokens in {tokens - saved} steps; {completion.guessed_tokens} guesses, of which the model ",
            end="",
        )
        print(f"shares {completion.agreed_tokens}]\n")
