"""Writes a chat model's own greedy replies, as texts from which extra heads learn what the model itself says.

    python -m benchmarks.quality.chat_replies ENGINE --count 400 --max-tokens 128 --output REPLIES.jsonl
    enginewright tune clp --model FILE.gguf --data REPLIES.jsonl --label-source backbone --length 192 --output HEADS
    enginewright build --model FILE.gguf --output HEADED --apply clp:heads=HEADS,verify=true
    python -m benchmarks.speed.extra_heads ENGINE HEADED --chat --max-tokens 128

Table: docs/benchmarks/real-models.md, "Extra heads". The prompts are those of benchmarks/chat_prompts.py for training; the
engines are compared on others. A row has the prompt as the chat template writes it, and the reply with its end token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chat_prompts import training_prompts
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.errors import EnginewrightError

NAME = "benchmarks.quality.chat_replies"


def replies(llm: LLM, prompts: Sequence[str], max_tokens: int) -> list[dict[str, str]]:
    """Return {"prompt": ..., "completion": ...} of each prompt, with special tokens.

    A reply whose text does not split into its own tokens again is left out.
    """
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    asked = [llm.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in prompts]
    rows = []
    for ids, completion in zip(
        asked, llm.generate(asked, Sampling(max_tokens=max_tokens, model_defaults=False)), strict=True
    ):
        own = list(completion.token_ids)
        prompt, text = (tokenizer.decode(part, skip_special_tokens=False) for part in (ids, own))
        if tokenizer.encode(prompt + text, add_special_tokens=False) == [*ids, *own]:
            rows.append({"prompt": prompt, "completion": text})
    return rows


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", metavar="ENGINE")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the .jsonl to write")
    parser.add_argument("--count", type=int, default=400, help="number of prompts (400)")
    parser.add_argument("--max-tokens", type=int, default=128, help="of a reply (128)")
    parser.add_argument("--threads", type=int)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Generate and write the replies."""
    args = _parser().parse_args(arguments)
    try:
        prompts = training_prompts(args.count)
    except ValueError as error:
        _parser().error(str(error))
    with load(args.engine, args.threads) as llm:
        rows = replies(llm, prompts, args.max_tokens)
    args.output.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    print(f"{len(rows)} of {len(prompts)} replies in {args.output}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(str(error))
