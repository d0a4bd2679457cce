"""`enginewright run`: answers prompts; the text of a single one is printed as it comes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from enginewright.runtime.artifact.files.bounded_file import MOST_TEXT, read_bounded
from enginewright.runtime.commands.chat_options import add_chat_arguments, make_conversations
from enginewright.runtime.errors import RequestError
from enginewright.runtime.llm import LLM, Prompt
from enginewright.runtime.loader import load
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.text.chat.conversation import Conversation

STANDARD_INPUT = "-"
_NEUTRAL = ResolvedSampling()
_NUMBERS = (("temperature", float), ("top_k", int), ("top_p", float), ("min_p", float), ("repetition_penalty", float))


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
        help="a prompt from a file, - for standard input; repeatable (default without prompts: standard input)",
    )
    parser.add_argument("--lines", action="store_true", help="every line of the files is a prompt of its own")
    add_chat_arguments(parser)
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="new tokens at most (default: the model's own, or as many as fit)"
    )
    for name, kind in _NUMBERS:
        flag, neutral = f"--{name.replace('_', '-')}", getattr(_NEUTRAL, name)
        parser.add_argument(flag, type=kind, metavar="X", help=f"sampling (default: the model's own, or {neutral})")
    parser.add_argument("--seed", type=int, metavar="X", help="of the random numbers (default: drawn from the system)")
    parser.add_argument(
        "--no-model-defaults",
        action="store_true",
        help="leave the model's own defaults of sampling, penalties, lengths and stop strings aside",
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--keep-special-tokens", action="store_true", help="print special tokens, too")
    parser.add_argument(
        "--load-vector", action="append", default=[], metavar="DIR", help="vectors that --vector may name; repeatable"
    )
    parser.add_argument("--vector", metavar="NAME[=SCALE]", help="add this vector from the prompt's last token on")
    parser.add_argument(
        "--load-adapter", action="append", default=[], metavar="DIR", help="adapter that --adapter may name; repeatable"
    )
    parser.add_argument("--adapter", metavar="NAME[=SCALE]", help="answer with this LoRA adapter")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument(
        "--backend", metavar="NAME", help="engine of the directory to run (default: the first that can)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each prompt, when all are done")


def run(arguments: argparse.Namespace) -> int:
    """Answer the prompts; several of them run together, and their answers come in their order."""
    vector, vector_scale = _read_named("--vector", arguments.vector)
    adapter, adapter_scale = _read_named("--adapter", arguments.adapter)
    sampling = Sampling(
        **{name: getattr(arguments, name) for name, _ in _NUMBERS},
        seed=arguments.seed,
        max_tokens=arguments.max_tokens,
        skip_special_tokens=not arguments.keep_special_tokens,
        stop=tuple(arguments.stop) or None,
        vector=vector,
        vector_scale=vector_scale,
        adapter=adapter,
        adapter_scale=adapter_scale,
        model_defaults=not arguments.no_model_defaults,
    )
    asked = make_conversations(_read_texts(arguments), arguments)
    rows = 1 if len(asked) == 1 else None
    with load(arguments.engine, arguments.threads, max_batch=rows, backend=arguments.backend) as llm:
        for folder in arguments.load_vector:
            llm.load_vector(folder)
        for folder in arguments.load_adapter:
            llm.load_adapter(folder)
        prompts = [_make_prompt(llm, each) for each in asked]
        if arguments.json:
            for completion in llm.generate(prompts, sampling):
                print(json.dumps(dataclasses.asdict(completion)))
        elif len(prompts) == 1:
            _print_stream(llm, prompts[0], sampling)
        else:
            for handle in llm.submit_all(prompts, sampling):
                print(handle.result().text, flush=True)
    return 0


def _read_named(option: str, text: str | None) -> tuple[str | None, float]:
    """Return the name and the factor that an option NAME[=SCALE] gives."""
    if text is None:
        return None, 1.0
    name, equals, scale = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return name, float(scale)
    except ValueError:
        raise RequestError(f"{option}: got the factor {scale!r}, expected a number after NAME=") from None


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
    has_prompt = bool(texts or arguments.file or arguments.messages)
    files = arguments.file if has_prompt else [STANDARD_INPUT]
    if not has_prompt and (sys.stdin is None or sys.stdin.isatty()):
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
        content = (
            _read_standard_input()
            if name == STANDARD_INPUT
            else read_bounded(Path(name), MOST_TEXT, RequestError, "pass a file with a prompt")
        )
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        raise RequestError(f"{where}: got bytes that are no UTF-8 ({e}); pass text") from e
    texts = [line for line in text.split("\n") if line.strip()] if by_line else [text.removesuffix("\n")]
    if not any(each.strip() for each in texts):
        raise RequestError(f"{where}: got no text, expected a prompt; pass --prompt TEXT, or --file FILE")
    return texts


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise RequestError("standard input: is closed, expected a prompt; pass --prompt TEXT, or --file FILE")
    content = sys.stdin.buffer.read(MOST_TEXT + 1)
    if len(content) > MOST_TEXT:
        raise RequestError(f"standard input: got more than {MOST_TEXT:,} bytes; pass a shorter prompt")
    return content


def _make_prompt(llm: LLM, asked: str | Conversation) -> Prompt:
    if isinstance(asked, str):
        return asked
    return llm.apply_chat_template(
        asked.messages,
        asked.tools,
        asked.documents,
        chat_template=asked.chat_template,
        chat_template_kwargs=asked.chat_template_kwargs,
    )
