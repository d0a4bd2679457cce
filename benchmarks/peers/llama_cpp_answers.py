"""Greedy answers of engines compared with llama.cpp's on the same GGUF file, and both with the exact model.

    python -m benchmarks.peers.llama_cpp_answers --gguf FILE.gguf --engine ENGINE --chat --peer-python LLAMA/bin/python

The engines are built from the file (`enginewright build --model FILE.gguf`); LLAMA is the environment that
`benchmarks.peers.llama_cpp` describes. Every side reads the same token ids, one prompt at a time, and answers with the most
probable token at every step. `--chat` asks questions through the model's template; without it, texts are continued.

Both programs round: llama.cpp multiplies 8-bit activations, and so does an engine unless it was built to compute in float32.
So a side's answers are judged by the exact model: transformers' model of the dequantised file, in float32. It reads each side's
own answers and says, at every step, whether the token is its own first choice, and if not, how many logits were given up.
The rounding of a side is how far its gap between the exact model's first and second choice is from the exact gap (root mean
square over all steps). Where the answers of two sides part, the exact gap between their two tokens is shown next to each
side's: if it is no more than three times the rounding of the less exact side, the parting is a tie, which rounding decides.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.answer_prompts import BEGINNINGS, QUESTIONS
from benchmarks.peers.greedy_answers import TOP, GreedyAnswers, write_prompts
from benchmarks.peers.rounds import CHECKOUT
from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.runtime import LLM, Sampling, load

NAME = "benchmarks.peers.llama_cpp_answers"
PEER = "llama.cpp"
TIE = 3


@dataclass(frozen=True)
class Judged:
    """One side's answers as the exact model sees them; created by `judge`.

    given_up: float64 [P, N], the exact model's highest logit minus that of the side's token; 0 where they are the same.
    rounding: float64 [P, N], the side's gap between the exact model's first and second choice, minus the exact gap; nan where
        the side has one of the two not among its first TOP.
    ahead: float64 [P, N], the exact logit of the side's token minus that of the peer's at the same step; it has a meaning until
        the two part.
    """

    name: str
    answers: GreedyAnswers
    given_up: NDArray[np.float64]
    rounding: NDArray[np.float64]
    ahead: NDArray[np.float64]

    @property
    def rounding_size(self) -> float:
        """Root mean square of `rounding`, in logits."""
        return float(np.sqrt(np.nanmean(self.rounding**2)))


@dataclass(frozen=True, kw_only=True)
class Parting:
    """The first step of a prompt at which an engine and llama.cpp choose different tokens; gaps in logits.

    gaps: the engine's token minus llama.cpp's, in the engine, in llama.cpp and in the exact model.
    rounding: of the less exact of the two.
    """

    prompt: int
    step: int
    tokens: tuple[int, int]
    gaps: tuple[float, float, float]
    rounding: float

    @property
    def is_tie(self) -> bool:
        """Whether the exact gap is so small that rounding decides."""
        return abs(self.gaps[2]) <= TIE * self.rounding


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--engine", required=True, type=Path, nargs="+", help="engines built from the file")
    parser.add_argument("--gguf", required=True, type=Path)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with llama-cpp-python")
    parser.add_argument("--chat", action="store_true", help="ask questions through the chat template")
    parser.add_argument("--prompts", type=int, default=len(QUESTIONS), help=f"at most {len(QUESTIONS)}, the default")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Answer with every side, judge the answers and print where they part."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    for name, limit in (("prompts", len(QUESTIONS)), ("new_tokens", None)):
        if not 1 <= (found := getattr(args, name)) <= (limit or found):
            parser.error(f"--{name.replace('_', '-')}: got {found}, expected 1 to {limit or 'any number'}")
    prompts, answers = answer_with_engines(args)
    answers[PEER] = answer_with_llama_cpp(prompts, args)
    judged = judge(args.gguf, prompts, answers)
    peer = judged.pop()
    figures = [figure for side in (*judged, peer) for figure in side_figures(side)]
    for side in judged:
        figures += partings_figures(side, peer, Vocabulary(args.engine[0]))
    save(args.results, NAME, arguments, figures)
    return 0


def answer_with_engines(args: argparse.Namespace) -> tuple[list[list[int]], dict[str, GreedyAnswers]]:
    """Return the token ids of the prompts, the first engine's, and every engine's answers by its name."""
    prompts: list[list[int]] = []
    answers = {}
    for engine in args.engine:
        with load(str(engine), args.threads, max_batch=1, prefix_reuse=False, verify=False) as llm:
            prompts = prompts or prompt_ids(llm, args)
            answers[engine.name] = answer_with_engine(llm, prompts, args.new_tokens)
    return prompts, answers


def prompt_ids(llm: LLM, args: argparse.Namespace) -> list[list[int]]:
    """Token ids of the questions in the engine's chat template, or of the beginnings."""
    if args.chat:
        return [llm.apply_chat_template([{"role": "user", "content": text}]) for text in QUESTIONS[: args.prompts]]
    if llm.tokenizer is None:
        raise SystemExit(f"{llm.manifest.name}: got an engine without a tokenizer, expected one with; build it again")
    return [llm.tokenizer.encode(text) for text in BEGINNINGS[: args.prompts]]


def answer_with_engine(llm: LLM, prompts: list[list[int]], new_tokens: int) -> GreedyAnswers:
    """The answers of an engine; its log-probabilities are logits but for a constant."""
    sampling = Sampling(max_tokens=new_tokens, ignore_eos=True, model_defaults=False, logprobs=TOP)
    done = llm.generate(prompts, sampling)
    tops = np.array([[step.top for step in each.logprobs or ()] for each in done])
    tokens = np.array([each.token_ids for each in done], np.int32)
    return GreedyAnswers(tokens, tops[..., 0].astype(np.int32), tops[..., 1].astype(np.float32))


def answer_with_llama_cpp(prompts: list[list[int]], args: argparse.Namespace) -> GreedyAnswers:
    """The answers of llama.cpp, from a process of its own."""
    with tempfile.TemporaryDirectory() as work:
        asked, answered = Path(work) / "prompts.npz", Path(work) / "answers.npz"
        write_prompts(asked, prompts)
        command = [args.peer_python, "-m", "benchmarks.peers.llama_cpp_answers_process"]
        command += ["--model", str(args.gguf.resolve()), "--prompts", str(asked), "--answers", str(answered)]
        command += ["--new-tokens", str(args.new_tokens), "--threads", str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
        if done.returncode:
            raise SystemExit(f"{args.peer_python}: llama.cpp ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return GreedyAnswers.read(answered)


def judge(file: Path, prompts: list[list[int]], answers: dict[str, GreedyAnswers]) -> list[Judged]:
    """Every side's answers as the exact model sees them."""
    import torch

    from enginewright.exporters.source.reference import load_reference

    model = load_reference(str(file), ())

    def logits_along(prompt: list[int], answer: NDArray[np.int32]) -> NDArray[np.float32]:
        text = torch.tensor([[*prompt, *answer[:-1].tolist()]])
        with torch.no_grad():
            found: NDArray[np.float32] = model(input_ids=text, logits_to_keep=len(answer)).logits[0].numpy()
        return found

    rivals = answers[PEER].tokens
    return [
        judged_side(name, side, rivals, (logits_along(*each) for each in zip(prompts, side.tokens, strict=True)))
        for name, side in answers.items()
    ]


def judged_side(
    name: str, answers: GreedyAnswers, rivals: NDArray[np.int32], exact: Iterable[NDArray[np.float32]]
) -> Judged:
    """Compare a side's answers with the exact logits along them, [N, V] for each prompt.

    rivals: the tokens of the peer's answers, [P, N].
    """
    given_up, rounding, ahead = np.empty((3, *answers.tokens.shape))
    for prompt, logits_of_prompt in enumerate(exact):
        for step, logits in enumerate(logits_of_prompt):
            second, first = np.argpartition(logits, -2)[-2:]
            token = answers.tokens[prompt, step]
            given_up[prompt, step] = logits[first] - logits[token]
            rounding[prompt, step] = answers.gap(prompt, step, first, second) - (logits[first] - logits[second])
            ahead[prompt, step] = logits[token] - logits[rivals[prompt, step]]
    return Judged(name, answers, given_up, rounding, ahead)


def find_partings(side: Judged, peer: Judged) -> list[Parting]:
    """The first parting of each prompt, where there is one."""
    partings = []
    for prompt in range(len(side.ahead)):
        different = np.flatnonzero(side.answers.tokens[prompt] != peer.answers.tokens[prompt])
        if len(different):
            step = int(different[0])
            ours, theirs = (int(each.answers.tokens[prompt, step]) for each in (side, peer))
            gaps = [each.answers.gap(prompt, step, ours, theirs) for each in (side, peer)]
            partings.append(
                Parting(
                    prompt=prompt,
                    step=step,
                    tokens=(ours, theirs),
                    gaps=(gaps[0], gaps[1], float(side.ahead[prompt, step])),
                    rounding=max(side.rounding_size, peer.rounding_size),
                )
            )
    return partings


def side_figures(side: Judged) -> list[Figure]:
    """Print and return how a side's answers are to the exact model."""
    first = float(np.mean(side.given_up == 0))
    worst, size = float(side.given_up.max()), side.rounding_size
    print(
        f"{side.name:24}  {first:.2%} of {side.given_up.size} tokens are the exact model's first choice, "
        f"at most {worst:.3f} logits given up, rounding {size:.2g} logits",
        flush=True,
    )
    about: dict[str, Condition] = {"side": side.name}
    return [
        Figure(name="tokens that are the exact model's first choice", value=100 * first, unit="%", conditions=about),
        Figure(name="most given up", value=worst, unit="logits", conditions=about),
        Figure(name="rounding", value=size, unit="logits", conditions=about),
    ]


class Vocabulary:
    """Texts of tokens, of an engine's tokenizer."""

    def __init__(self, engine: Path) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(engine / "tokenizer" / "tokenizer.json"))

    def __getitem__(self, token: int) -> str:
        return repr(self._tokenizer.decode([token], skip_special_tokens=False))


def partings_figures(side: Judged, peer: Judged, vocabulary: Vocabulary) -> list[Figure]:
    """Print and return where an engine's answers and llama.cpp's part."""
    partings = find_partings(side, peer)
    count, steps = side.answers.tokens.shape
    before = sum(parting.step for parting in partings) + steps * (count - len(partings))
    ties = sum(parting.is_tie for parting in partings)
    right = sum(parting.gaps[2] > 0 for parting in partings)
    print(
        f"{side.name} and {peer.name}: {count - len(partings)} of {count} answers of {steps} tokens equal, {before} of "
        f"{count * steps} tokens before a parting; of {len(partings)} partings {ties} are ties; "
        f"the exact model takes the engine's token in {right}, {peer.name}'s in {len(partings) - right}"
    )
    about: dict[str, Condition] = {"side": side.name}
    figures = [
        Figure(name=name, value=value, unit=unit, conditions=about)
        for name, value, unit in (
            ("equal answers", count - len(partings), f"of {count}"),
            ("tokens before a parting", before, f"of {count * steps}"),
            ("partings", len(partings), f"of {count}"),
            ("partings that are ties", ties, f"of {len(partings)}"),
            ("partings where the exact model takes the engine's token", right, f"of {len(partings)}"),
        )
    ]
    for parting in partings:
        ours, theirs = (vocabulary[token] for token in parting.tokens)
        engine, llama_cpp, exact = parting.gaps
        print(
            f"  prompt {parting.prompt + 1:2} token {parting.step + 1:2}: {ours} or {theirs}; gap in logits: exact {exact:+.4f}, "
            f"engine {engine:+.4f}, {peer.name} {llama_cpp:+.4f}{'' if parting.is_tie else '  NOT A TIE'}"
        )
        where: dict[str, Condition] = {
            **about,
            "prompt": parting.prompt + 1,
            "token": parting.step + 1,
            "engine's token": ours,
            "llama.cpp's token": theirs,
            **{f"in {name}": gap for name, gap in (("the engine", engine), (peer.name, llama_cpp)) if gap == gap},
        }
        figures.append(Figure(name="gap at a parting, exact", value=exact, unit="logits", conditions=where))
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
