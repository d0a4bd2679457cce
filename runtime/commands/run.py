"""`enginewright run`: answers prompts; the text of a single one is printed as it comes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from enginewright.runtime.errors import RequestError
from enginewright.runtime.llm import LLM, Prompt
from enginewright.runtime.loader import load
from enginewright.runtime.requests.sampling import Sampling

STANDARD_INPUT = "-"
_DEFAULTS = Sampling()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("engine", metavar="DIR", help="engine directory")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="text to answer or to continue; repeatable"
    )
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="a prompt from a file, - for standard input; repeatable (default without --prompt: standard input)",
    )
    parser.add_argument("--lines", action="store_true", help="every line of the files is a prompt of its own")
    parser.add_argument("--chat", action="store_true", help="send each prompt as a user's message (chat template)")
    parser.add_argument("--system", metavar="TEXT", help="system message before each prompt; implies --chat")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="new tokens at most (default: as many as fit)")
    for name, kind in (("temperature", float), ("top_k", int), ("top_p", float), ("min_p", float), ("seed", int)):
        flag, default = f"--{name.replace('_', '-')}", getattr(_DEFAULTS, name)
        parser.add_argument(flag, type=kind, default=default, metavar="X", help=f"sampling (default: {default})")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--keep-special-tokens", action="store_true", help="print special tokens, too")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument(
        "--backend", metavar="NAME", help="engine of the directory to run (default: the first that can)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each prompt, when all are done")


def run(arguments: argparse.Namespace) -> int:
    """Answer the prompts; several of them run together, and their answers come in their order."""
    sampling = Sampling(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        seed=arguments.seed,
        max_tokens=arguments.max_tokens,
        stop=tuple(arguments.stop),
        skip_special_tokens=not arguments.keep_special_tokens,
    )
    texts = _read_texts(arguments)
    rows = 1 if len(texts) == 1 else None
    with load(arguments.engine, arguments.threads, max_batch=rows, backend=arguments.backend) as llm:
        prompts = [_make_prompt(llm, text, arguments) for text in texts]
        if arguments.json:
            for completion in llm.generate(prompts, sampling):
                print(json.dumps(dataclasses.asdict(completion)))
        elif len(prompts) == 1:
            _print_stream(llm, prompts[0], sampling)
        else:
            for handle in llm.submit_all(prompts, sampling):
                print(handle.result().text, flush=True)
    return 0


def _print_stream(llm: LLM, prompt: Prompt, sampling: Sampling) -> None:
    """Print the answer as it comes; its line ends even where an error cuts it off, so that the error has its own."""
    has_begun = False
    try:
        for token in llm.stream(prompt, sampling):
            sys.stdout.write(token.text)
            sys.stdout.flush()
            has_begun = True
    except BaseException:
        if has_begun:
            print(flush=True)
        raise
    print()


def _read_texts(arguments: argparse.Namespace) -> list[str]:
    """Return the prompts: those of the command line, then those of the files, in order."""
    texts = list(arguments.prompt)
    files = arguments.file or ([] if texts else [STANDARD_INPUT])
    if not texts and not arguments.file and (sys.stdin is None or sys.stdin.isatty()):
        raise RequestError("run: got no prompt; pass --prompt TEXT, --file FILE, or text on standard input")
    if arguments.lines and not files:
        raise RequestError(
            "--lines: got no file whose lines it could mean; add --file FILE, or --file - for standard input"
        )
    for name in files:
        texts += _read_file(name, by_line=arguments.lines)
    return texts


def _read_file(name: str, *, by_line: bool) -> list[str]:
    """Return the prompts of one file, UTF-8 with or without a byte order mark; empty lines between prompts are none."""
    where = "standard input" if name == STANDARD_INPUT else name
    try:
        content = _read_standard_input() if name == STANDARD_INPUT else Path(name).read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        raise RequestError(f"{where}: got bytes that are no UTF-8 ({e}); pass text") from e
    except OSError as e:
        raise RequestError(f"{where}: cannot be read ({e.strerror}); pass a file with a prompt") from e
    texts = [line for line in text.split("\n") if line.strip()] if by_line else [text.removesuffix("\n")]
    if not any(each.strip() for each in texts):
        raise RequestError(f"{where}: got no text, expected a prompt; pass --prompt TEXT, or --file FILE")
    return texts


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise RequestError("standard input: is closed, expected a prompt; pass --prompt TEXT, or --file FILE")
    return sys.stdin.buffer.read()


def _make_prompt(llm: LLM, text: str, arguments: argparse.Namespace) -> Prompt:
    if not arguments.chat and arguments.system is None:
        return text
    messages = [{"role": "user", "content": text}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return llm.apply_chat_template(messages)
