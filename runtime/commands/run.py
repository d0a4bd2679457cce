"""`enginewright run`: answer one prompt, printing the text as it comes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from enginewright.runtime.llm import LLM, Prompt
from enginewright.runtime.loader import load
from enginewright.runtime.requests.sampling import Sampling

_DEFAULTS = Sampling()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("engine", metavar="DIR", help="engine directory")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to answer or to continue")
    parser.add_argument("--chat", action="store_true", help="send the prompt as a user's message (chat template)")
    parser.add_argument("--system", metavar="TEXT", help="system message before it; implies --chat")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="new tokens at most (default: as many as fit)")
    for name, kind in (("temperature", float), ("top_k", int), ("top_p", float), ("min_p", float), ("seed", int)):
        flag, default = f"--{name.replace('_', '-')}", getattr(_DEFAULTS, name)
        parser.add_argument(flag, type=kind, default=default, metavar="X", help=f"sampling (default: {default})")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument(
        "--backend", metavar="NAME", help="engine of the directory to run (default: the first that can)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object when done")


def run(arguments: argparse.Namespace) -> int:
    """Answer the prompt."""
    sampling = Sampling(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        seed=arguments.seed,
        max_tokens=arguments.max_tokens,
        stop=tuple(arguments.stop),
    )
    with load(arguments.engine, arguments.threads, max_batch=1, backend=arguments.backend) as llm:
        prompt = _read_prompt(llm, arguments)
        if arguments.json:
            print(json.dumps(dataclasses.asdict(llm.generate([prompt], sampling)[0])))
            return 0
        for token in llm.stream(prompt, sampling):
            sys.stdout.write(token.text)
            sys.stdout.flush()
        print()
    return 0


def _read_prompt(llm: LLM, arguments: argparse.Namespace) -> Prompt:
    if not arguments.chat and arguments.system is None:
        return str(arguments.prompt)
    messages = [{"role": "user", "content": arguments.prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return llm.apply_chat_template(messages)
