"""The inputs and outputs of a served engine: config.pbtxt declares them, the model reads and writes them.

Their names are those of Triton's LLM backends and of its endpoints `generate` and `generate_stream`. This module imports
the standard library alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

DataType: TypeAlias = Literal["STRING", "BOOL", "INT64", "UINT64", "FP32"]


@dataclass(frozen=True, slots=True)
class ServedPort:
    """An input or output tensor.

    name: its name in config.pbtxt.
    type: Triton's name of its type, without the prefix TYPE_.
    dims: (1,) for a single value, (-1,) for a list.
    """

    name: str
    type: DataType
    dims: tuple[int, ...] = (1,)


INPUTS = (
    ServedPort("text_input", "STRING"),
    ServedPort("input_ids", "INT64", (-1,)),
    ServedPort("messages", "STRING"),
    ServedPort("tools", "STRING"),
    ServedPort("documents", "STRING"),
    ServedPort("chat_template_kwargs", "STRING"),
    ServedPort("max_tokens", "INT64"),
    ServedPort("stream", "BOOL"),
    ServedPort("stop", "STRING", (-1,)),
    ServedPort("stop_token_ids", "INT64", (-1,)),
    ServedPort("ignore_eos", "BOOL"),
    ServedPort("skip_special_tokens", "BOOL"),
    ServedPort("temperature", "FP32"),
    ServedPort("top_k", "INT64"),
    ServedPort("top_p", "FP32"),
    ServedPort("min_p", "FP32"),
    ServedPort("typical_p", "FP32"),
    ServedPort("epsilon_cutoff", "FP32"),
    ServedPort("eta_cutoff", "FP32"),
    ServedPort("repetition_penalty", "FP32"),
    ServedPort("presence_penalty", "FP32"),
    ServedPort("frequency_penalty", "FP32"),
    ServedPort("seed", "UINT64"),
    ServedPort("logprobs", "INT64"),
    ServedPort("priority", "INT64"),
    ServedPort("timeout_ms", "INT64"),
    ServedPort("conditions", "STRING", (-1,)),
    ServedPort("vector", "STRING"),
    ServedPort("vector_scale", "FP32"),
    ServedPort("adapter", "STRING"),
    ServedPort("adapter_scale", "FP32"),
    ServedPort("logits_processors", "STRING"),
    ServedPort("model_defaults", "BOOL"),
    ServedPort("lora_name", "STRING"),
    ServedPort("stop_words", "STRING", (-1,)),
    ServedPort("end_id", "INT64", (-1,)),
    ServedPort("random_seed", "UINT64"),
    ServedPort("exclude_input_in_output", "BOOL"),
    ServedPort("return_num_input_tokens", "BOOL"),
    ServedPort("return_num_output_tokens", "BOOL"),
    ServedPort("guided_decoding_guide_type", "STRING"),
    ServedPort("guided_decoding_guide", "STRING"),
)
"""All are optional, except that one of the first three must be given.

messages, tools, documents, chat_template_kwargs: JSON texts; the last three go with messages alone.
conditions: each "NAME=ENTRY", or "NAME=ENTRY*SCALE". logits_processors: a JSON object, the names of installed processors
with their options, null for one of the model's own that is to be off. lora_name: as the vLLM backend's clients name an
adapter. exclude_input_in_output: false has the
text begin with `text_input`. The inputs from stop_words on are those of Triton's OpenAI frontend and of the TensorRT-LLM
backend.
"""

REFUSED = {
    name: "this version does not hold the output to a grammar or schema; leave it out, and ask for the form in the prompt (in "
    "OpenAI's API: no tool_choice but auto or none)"
    for name in ("guided_decoding_guide_type", "guided_decoding_guide")
}
"""Input that clients send -> why no request with it is served. They are declared so that the client learns the reason."""

COUNTS = {"return_num_input_tokens": "num_input_tokens", "return_num_output_tokens": "num_output_tokens"}
"""Input -> the output that comes unless it is false."""

ALIASES = {"lora_name": "adapter", "stop_words": "stop", "end_id": "stop_token_ids", "random_seed": "seed"}
"""Name in another backend -> our name."""

PROMPTS = ("text_input", "input_ids", "messages")
CHAT = {"tools": list, "documents": list, "chat_template_kwargs": dict}
"""Name of each input that goes with messages -> what its JSON text is of."""

SAMPLING = (
    *(
        "max_tokens",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "skip_special_tokens",
        "seed",
        "logprobs",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "vector",
        "vector_scale",
        "adapter",
        "adapter_scale",
        "model_defaults",
    ),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
"""Inputs that are fields of Sampling with the same name."""

OUTPUTS = (
    ServedPort("text_output", "STRING"),
    ServedPort("token_ids", "INT64", (-1,)),
    ServedPort("finish_reason", "STRING"),
    ServedPort("num_input_tokens", "INT64"),
    ServedPort("num_output_tokens", "INT64"),
    ServedPort("logprobs", "FP32", (-1,)),
    ServedPort("top_token_ids", "INT64", (-1, -1)),
    ServedPort("top_logprobs", "FP32", (-1, -1)),
)
"""The first two are in every response of a stream, finish_reason and the counts in the last one alone.

The log-probabilities are there if the request asks for them.
"""

ENGINE = "engine"
"""Name of the engine directory, which lies next to model.py."""

MAX_QUEUE, BACKEND = "max_queue", "backend"
LOAD_OPTIONS = ("threads", "max_batch", "cache_tokens", "prefill_chunk")
"""Parameters in config.pbtxt: the length of the queue, the backend's name, and whole numbers for `load`."""
