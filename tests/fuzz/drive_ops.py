"""Calls the ops of a library built with sanitizers; run as `python -m tests.fuzz.drive_ops LIBRARY CALLS SEED`.

A process of its own, because the sanitizers' runtime has to be loaded first, and because they end the process at a fault.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

from enginewright.runtime.backends.onnxruntime.load_errors import LOAD_ERRORS
from tests.fuzz.op_calls import MAKERS, make_call
from tests.support.ops import op_session


def main() -> None:
    """Make the calls, and print how many of each op ended well."""
    library, calls, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    op_session.ort_library = lambda: library  # type: ignore[attr-defined]
    rng, done = random.Random(seed), Counter[str]()
    for number in range(calls):
        op = rng.choice(list(MAKERS))
        arrays, attributes = make_call(rng, op)
        try:
            op_session.run_op(op, arrays, threads=1 + number % 2, **attributes)
            done[op] += 1
        except (*LOAD_ERRORS, ValueError):  # ValueError: of an input that the node needs
            done["refused"] += 1
        if number % 100 == 99:
            op_session.open_op.cache_clear()
    print(dict(sorted(done.items())))


if __name__ == "__main__":
    main()
