"""Measures an engine's speeds in processor time, as one side of `benchmarks.peers.rounds`.

For wall time the rounds run `enginewright bench` instead.

python -m benchmarks.peers.engine_process --engine ENGINE --threads 1
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from benchmarks.peers.rounds import Speeds, add_arguments, best_of_repeats, print_speeds
from enginewright.runtime import Sampling, load
from enginewright.runtime.scheduling.step_loop import StepTiming


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    if args.batch != 1:
        parser.error(f"--batch: got {args.batch}, expected 1")
    print_speeds(measure(args))
    return 0


def measure(args: argparse.Namespace) -> Speeds:
    """The best speeds of the repeats on random prompts, decoded greedily."""
    rng = np.random.default_rng(0)

    def generate() -> tuple[float, float, float]:
        ends: list[float] = []
        start = time.perf_counter()

        def observe(step: StepTiming) -> None:
            if step.sampled and step.start >= start:  # the last step of an earlier run may report late
                ends.append(time.process_time())

        prompt = rng.integers(0, llm.manifest.model.vocab_size, args.prompt_tokens).tolist()
        llm.loop.observer = observe
        begin = time.process_time()
        llm.generate([prompt], Sampling(max_tokens=args.new_tokens + 2, ignore_eos=True, model_defaults=False))
        llm.loop.observer = None
        return begin, ends[0], ends[args.new_tokens]

    with load(str(args.engine[0]), args.threads, max_batch=1, prefix_reuse=False, verify=False) as llm:
        generate()  # first runs allocate
        return best_of_repeats(generate, args)


if __name__ == "__main__":
    sys.exit(main())
