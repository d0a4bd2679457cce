"""Trains the reasoning model's tokenizer: byte-level BPE in which each digit, sign and one-letter name is one token."""

import random
from itertools import islice

from small_talk import SMALL_TALK, SYSTEM_PROMPTS
from tiny_qwen3 import byte_level_bpe
from transformers import PreTrainedTokenizerFast

from enginewright.runtime.evaluation.problems import training_problems

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# A word keeps the space before it; a one-letter name does not, so that it is the same token in every position.
SPLIT = r" ?\p{L}{2,}|\S|\s"
CORPUS_PROBLEMS = 3000
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "    {{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)


def train_tokenizer(*, vocab_size: int, context_length: int, seed: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer with `vocab_size` entries on generated problems and the words of the chat template."""
    core = byte_level_bpe(_corpus(seed), split=SPLIT, vocab_size=vocab_size, special_tokens=[PAD, START, END])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _corpus(seed: int) -> list[str]:
    problems = islice(training_problems(f"tokenizer {seed}"), CORPUS_PROBLEMS)
    texts = [text for problem in problems for text in (problem.question, problem.solution)]
    for prompts, reply in SMALL_TALK:
        texts += [*prompts, *[reply] * 20]
    texts += [*SYSTEM_PROMPTS * 20, *["system\n", "user\n", "assistant\n"] * 200]
    random.Random(seed).shuffle(texts)
    return texts
