"""The inputs and outputs of a served engine: config.pbtxt declares them, the model reads and writes them.

Their names are those of Triton's LLM backends and of its endpoints `generate` and `generate_stream`. This module imports
the standard library alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

DataType: TypeAlias = Literal["STRING", "BOOL", "INT64", "UINT64", "FP32"]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output tensor.

    name: its name in config.pbtxt.
    type: Triton's name of its type, without the prefix TYPE_.
    dims: (1,) for a single value, (-1,) for a list.
    """

    name: str
    type: DataType
    dims: tuple[int, ...] = (1,)


INPUTS = (
    Port("text_input", "STRING"),
    Port("input_ids", "INT64", (-1,)),
    Port("messages", "STRING"),
    Port("max_tokens", "INT64"),
    Port("stream", "BOOL"),
    Port("stop", "STRING", (-1,)),
    Port("stop_token_ids", "INT64", (-1,)),
    Port("ignore_eos", "BOOL"),
    Port("temperature", "FP32"),
    Port("top_k", "INT64"),
    Port("top_p", "FP32"),
    Port("min_p", "FP32"),
    Port("repetition_penalty", "FP32"),
    Port("presence_penalty", "FP32"),
    Port("frequency_penalty", "FP32"),
    Port("seed", "UINT64"),
    Port("logprobs", "INT64"),
    Port("priority", "INT64"),
    Port("timeout_ms", "INT64"),
    Port("steering", "STRING", (-1,)),
    Port("stop_words", "STRING", (-1,)),
    Port("end_id", "INT64", (-1,)),
    Port("random_seed", "UINT64"),
)
"""All are optional, except that one of the first three must be given. steering: reserved for function vectors."""

ALIASES = {"stop_words": "stop", "end_id": "stop_token_ids", "random_seed": "seed"}
"""Name in another backend -> our name."""

PROMPTS = ("text_input", "input_ids", "messages")

SAMPLING = (
    *(
        "max_tokens",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "seed",
        "logprobs",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
    ),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
"""Inputs that are fields of Sampling with the same name."""

OUTPUTS = (
    Port("text_output", "STRING"),
    Port("token_ids", "INT64", (-1,)),
    Port("finish_reason", "STRING"),
    Port("num_input_tokens", "INT64"),
    Port("num_output_tokens", "INT64"),
    Port("logprobs", "FP32", (-1,)),
    Port("top_token_ids", "INT64", (-1, -1)),
    Port("top_logprobs", "FP32", (-1, -1)),
)
"""The first two are in every response of a stream, finish_reason and the counts in the last one alone.

The log-probabilities are there if the request asks for them.
"""

ENGINE = "engine"
"""Name of the engine directory, which lies next to model.py."""

MAX_QUEUE, BACKEND = "max_queue", "backend"
LOAD_OPTIONS = ("threads", "max_batch", "cache_tokens", "prefill_chunk")
"""Parameters in config.pbtxt: the length of the queue, the backend's name, and whole numbers for `load`."""
