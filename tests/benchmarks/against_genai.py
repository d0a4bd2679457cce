"""Compares an engine's decode and prefill speed with onnxruntime-genai's, process by process in alternation.

    pip install onnxruntime-genai==0.18.0
    python -m enginewright.exporters.synthetic --like qwen2-0.5b --output CHECKPOINT
    python build_engine.py --model CHECKPOINT --output ENGINE --weights int4
    python -m onnxruntime_genai.models.builder -i CHECKPOINT -o PEER -p int4 -e cpu     # wants tokenizer files too
    python tests/benchmarks/against_genai.py --engine ENGINE --peer PEER

Each round runs both sides once, each in a fresh process, so that neither's idle threads disturb the other; within a
process the best of three repeats counts. Printed: each round's figures, the best of all rounds with their ratio, and
the median of the rounds' own ratios, which a drifting machine disturbs less. The physical limit is the bytes of weights that a token reads over this machine's measured read bandwidth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

REPEATS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True, help="enginewright engine directory")
    parser.add_argument("--peer", required=True, help="onnxruntime-genai model directory")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=("engine", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "peer":
        print(json.dumps([measure_peer(args)]))
        return 0
    speeds: dict[str, list[tuple[float, float]]] = {"engine": [], "peer": []}
    for number in range(args.rounds):
        for side in ("engine", "peer") if number % 2 == 0 else ("peer", "engine"):
            speeds[side].append(run_side(side, args))
            prefill, decode = speeds[side][-1]
            print(f"round {number + 1} {side:6}  prefill {prefill:8.1f}  decode {decode:7.2f} tok/s", flush=True)
    table = {side: np.array(rows) for side, rows in speeds.items()}  # [rounds, 2]
    for name, ours, peer in zip(("prefill", "decode"), table["engine"].T, table["peer"].T, strict=True):
        median = float(np.median(ours / peer))
        best = f"best engine {max(ours):8.1f}  peer {max(peer):8.1f} tok/s  ratio {max(ours) / max(peer):.2f}"
        print(f"{name:7}  {best}  median ratio of the rounds {median:.2f}")
    limit = weight_bytes(Path(args.engine))
    print(
        f"weights read per step {limit / 1e6:.0f} MB: at B GB/s the limit is {args.batch * 1e9 / limit:.3f} * B tok/s"
    )
    return 0


def run_side(side: str, args: argparse.Namespace) -> tuple[float, float]:
    """Return prefill and decode tokens per second of one fresh process."""
    sizes = ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens)]
    common = [*sizes, "--threads", str(args.threads), "--batch", str(args.batch)]
    if side == "engine":
        cli = [sys.executable, "-m", "enginewright.runtime.cli", "bench", args.engine, "--json"]
        command = [*cli, "--repeat", str(REPEATS), *common]
    else:
        script = [sys.executable, __file__, "--engine", args.engine, "--peer", args.peer]
        command = [*script, "--side", "peer", *common]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = json.loads(printed)[0]
    return row["prefill_speed"], row["decode_speed"]


def measure_peer(args: argparse.Namespace) -> dict[str, float]:
    """Best of REPEATS of onnxruntime-genai on random prompts, greedy, to a fixed length."""
    import onnxruntime_genai as og

    config = og.Config(args.peer)
    threads = {"model": {"decoder": {"session_options": {"intra_op_num_threads": args.threads}}}}
    config.overlay(json.dumps(threads))
    model = og.Model(config)
    rng = np.random.default_rng(0)
    length = args.prompt_tokens + args.new_tokens + 1
    prefill = decode = 0.0
    for _ in range(REPEATS):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=args.batch)
        generator = og.Generator(model, params)
        ids = rng.integers(3, 500, (args.batch, args.prompt_tokens)).astype(np.int32)
        begin = time.perf_counter()
        generator.append_tokens(ids if args.batch > 1 else ids[0])
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(args.new_tokens):
            generator.generate_next_token()
        end = time.perf_counter()
        prefill = max(prefill, args.batch * args.prompt_tokens / (middle - begin))
        decode = max(decode, args.batch * args.new_tokens / (end - middle))
    return {"prefill_speed": prefill, "decode_speed": decode}


def weight_bytes(engine: Path) -> int:
    """Bytes of the weights file: a tied embedding is read whole as the output projection."""
    manifest = json.loads((engine / "manifest.json").read_text())
    return int(manifest["graphs"]["decoder"]["files"][1]["size"])


if __name__ == "__main__":
    sys.exit(main())
