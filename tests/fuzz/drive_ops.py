"""Calls the ops of a library built with sanitizers; run as `python -m tests.fuzz.drive_ops LIBRARY CALLS SEED`.

A process of its own, because the sanitizers' runtime has to be loaded first, and because they end the process at a fault.
"""

from __future__ import annotations

import itertools
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from enginewright.runtime.backends.onnxruntime.load_errors import LOAD_ERRORS
from tests.fuzz.op_calls import MAKERS, Arrays, kept_calls, make_node, spoil
from tests.support.ops import op_session

CALLS_OF_A_NODE = 10  # opening a session takes longer than a call


def nodes(seed: int) -> Iterator[tuple[random.Random, str, Arrays, dict[str, Any]]]:
    """Yield nodes of the ops without end, each op as often as another."""
    rng = random.Random(seed)
    for op in itertools.cycle(MAKERS):
        yield rng, op, *make_node(rng, op)


def open_node(op: str, arrays: Arrays, attributes: dict[str, Any], threads: int) -> ort.InferenceSession | None:
    """A session of the node, or None where the library refuses it."""
    try:
        return op_session.open_op.__wrapped__(op, tuple(arrays), tuple(attributes.items()), threads, arena=False)
    except (*LOAD_ERRORS, ValueError):  # ValueError: of an input that the node needs
        return None


def ends_well(session: ort.InferenceSession | None, arrays: Arrays) -> bool:
    """Make a call, and return whether it gave outputs."""
    try:
        outputs = session.run(None, arrays) if session is not None else []
    except (*LOAD_ERRORS, ValueError):
        return False
    return all(isinstance(output, np.ndarray) for output in outputs) and bool(outputs)


def main() -> None:
    """Make the calls; print how many of each op ended well, the slowest in seconds, and the most memory in MiB."""
    library, calls, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    op_session.ort_library = lambda: library  # type: ignore[attr-defined]
    for op, arrays in kept_calls():
        ends_well(open_node(op, arrays, {}, 1), arrays)
    done, left, slowest = Counter[str](), calls, (0.0, "")
    for number, (rng, op, arrays, attributes) in enumerate(nodes(seed)):
        session = open_node(op, arrays, attributes, 1 + number % 2)
        for _ in range(min(left, CALLS_OF_A_NODE if session is not None else 1)):
            spoilt = spoil(rng, arrays)
            begin = time.perf_counter()
            done[op if ends_well(session, spoilt) else "refused"] += 1
            slowest = max(slowest, (time.perf_counter() - begin, f"{op}, node {number}"))
            left -= 1
        if not left:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"counts": dict(sorted(done.items())), "slowest": slowest, "peak": peak}))


if __name__ == "__main__":
    main()
