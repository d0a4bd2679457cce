"""Reads a Triton request: checks its tensors and parameters, and turns them into a prompt and sampling options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.files.json_file import parse_json
from enginewright.runtime.errors import RequestError
from enginewright.runtime.llm import LLM, Prompt
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.triton.ports import ALIASES, CHAT, COUNTS, INPUTS, PROMPTS, REFUSED, SAMPLING, ServedPort

_PORTS = {port.name: port for port in INPUTS}
_SERVED = tuple(name for name in _PORTS if name not in REFUSED)
_KINDS: dict[str, tuple[type, ...]] = {"BOOL": (bool,), "STRING": (str,), "FP32": (float, int)}
_KIND_NAMES = {"BOOL": "true or false", "STRING": "text", "FP32": "a number"}


@dataclass(frozen=True, kw_only=True)
class ServedRequest:
    """A client's request, checked; created by `read_request`.

    prompt: text or token ids.
    sampling: the options for its tokens.
    stream: whether the client gets a response for each piece of text, instead of a single one.
    priority: of the requests that wait, those with lower numbers run first.
    timeout: seconds from arrival after which the request is given up; None for no limit.
    echo: the text of the first response begins with it.
    left_out: names of the outputs that the client does not want.
    """

    prompt: Prompt
    sampling: Sampling
    stream: bool = False
    priority: int = 0
    timeout: float | None = None
    echo: str = ""
    left_out: frozenset[str] = frozenset()


def read_request(
    llm: LLM, tensors: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any], timeout_us: int = 0
) -> ServedRequest:
    """Return the request that the tensors and parameters describe.

    llm: the engine that is to serve it.
    tensors: the request's inputs by name, [n] or [1, n], texts as bytes.
    parameters: values with the same names as the inputs; the `generate` endpoint passes on what it gets in "parameters".
    timeout_us: the timeout of Triton's own request field, in microseconds; 0 where it is not set.

    Raises:
        RequestError: an unknown name, a wrong type or shape, a value out of range, or a prompt that cannot be served.
    """
    values = _read_all(tensors, parameters)
    sampling = Sampling(
        **{name: values[name] for name in SAMPLING if name in values},
        conditions=_read_conditions(values.get("conditions", [])),
        logits_processors=_read_processors(values.get("logits_processors", "{}")),
    )
    limits = [timeout_us / 1e6] if timeout_us else []
    if "timeout_ms" in values:
        if values["timeout_ms"] < 1:
            raise RequestError(f"timeout_ms: got {values['timeout_ms']}, expected 1 or more milliseconds")
        limits.append(values["timeout_ms"] / 1e3)
    return ServedRequest(
        prompt=_read_prompt(llm, values),
        sampling=sampling,
        stream=values.get("stream", False),
        priority=values.get("priority", 0),
        timeout=min(limits, default=None),
        echo="" if values.get("exclude_input_in_output", True) else _read_echo(values),
        left_out=frozenset(output for name, output in COUNTS.items() if not values.get(name, True)),
    )


def _read_echo(values: Mapping[str, Any]) -> str:
    """Return the prompt's text, which the output is to begin with."""
    if "text_input" not in values:
        raise RequestError(
            "exclude_input_in_output: got false with a prompt that is not text; send text_input, or leave it out"
        )
    return str(values["text_input"])


def _read_conditions(texts: list[str]) -> dict[str, str | tuple[str, float]]:
    """Return what texts like "mood=calm" and "mood=calm*0.5" choose."""
    chosen: dict[str, str | tuple[str, float]] = {}
    for text in texts:
        name, equals, choice = text.partition("=")
        entry, times, scale = choice.partition("*")
        if not equals or not name or not entry or name in chosen:
            raise RequestError(
                f"conditions: got {_shorten(text)}, expected NAME=ENTRY or NAME=ENTRY*SCALE, each name once"
            )
        try:
            chosen[name] = (entry, float(scale)) if times else entry
        except ValueError:
            raise RequestError(f"conditions: got the scale {_shorten(scale)}, expected a number") from None
    return chosen


def _read_processors(text: str) -> dict[str, dict[str, Any] | None]:
    """Return the names and options that a JSON object has."""
    try:
        found = parse_json(text, "logits_processors", RequestError, "")
    except RequestError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(options, dict | None) for options in found.values()):
        raise RequestError(
            f"logits_processors: got {_shorten(text)}, expected a JSON object of names with objects of options, or null"
        )
    return found


def _read_all(tensors: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return all values by our names for them."""
    values: dict[str, Any] = {}
    for name, value in (*tensors.items(), *parameters.items()):
        port = _PORTS.get(name)
        if port is None:
            raise RequestError(f"{_shorten(name)}: unknown parameter; known: {', '.join(_SERVED)}")
        if name in REFUSED:
            raise RequestError(f"{name}: {REFUSED[name]}")
        own = ALIASES.get(name, name)
        if own in values:
            raise RequestError(f"{name}: given twice, as {own} and by another name or way; give it once")
        values[own] = _from_tensor(port, value) if isinstance(value, np.ndarray) else _from_parameter(port, value)
    return values


def _from_tensor(port: ServedPort, array: NDArray[Any]) -> Any:
    if array.ndim == 2 and len(array) == 1:  # the model is declared with a batch dimension
        array = array[0]
    if array.ndim != 1 or (port.dims == (1,) and len(array) != 1):
        expected = "one value" if port.dims == (1,) else "a list"
        raise RequestError(f"{port.name}: got shape {list(array.shape)}, expected {expected}")
    values = (
        [_plain_value(port, value) for value in array.tolist()] if port.type != "FP32" else _shortest_decimals(array)
    )
    return values[0] if port.dims == (1,) else values


def _from_parameter(port: ServedPort, value: Any) -> Any:
    kinds = _KINDS.get(port.type, (int,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and port.type != "BOOL"):
        expected = _KIND_NAMES.get(port.type, "a whole number")
        raise RequestError(f"{port.name}: got {_shorten(value)} as a parameter, expected {expected}")
    return value if port.dims == (1,) else [value]


def _plain_value(port: ServedPort, value: Any) -> Any:
    if port.type != "STRING":
        return value
    raw = value if isinstance(value, bytes) else str(value).encode()
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise RequestError(
            f"{port.name}: got byte 0x{raw[e.start]:02x} at position {e.start}, expected text in UTF-8"
        ) from e


def _shortest_decimals(array: NDArray[Any]) -> list[float]:
    """Return the shortest decimals that round to these single-precision numbers, so that a client's 0.7 is 0.7 here too."""
    return [float(str(value)) for value in array.astype(np.float32)]


def _read_prompt(llm: LLM, values: Mapping[str, Any]) -> Prompt:
    given = [name for name in PROMPTS if name in values]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise RequestError(f"prompt: got {got}, expected one of {', '.join(PROMPTS)}")
    (name,) = given
    value = values[name]
    if name != "messages" and (extra := [each for each in CHAT if each in values]):
        raise RequestError(f"{extra[0]}: got it with {name}, expected it with messages, which a chat template writes")
    if not value:
        raise RequestError(f"{name}: got nothing, expected a prompt")
    if name == "input_ids":
        return list(value)
    if llm.tokenizer is None:
        raise RequestError(f"{name}: got text, but the engine has no tokenizer; send input_ids instead")
    longest = llm.capacity.context * llm.tokenizer.longest_token
    for part in (name, *CHAT):
        if (
            len(values.get(part, "")) > longest
        ):  # so that no text takes longer to read than the longest prompt that fits
            raise RequestError(
                f"{part}: got {len(values[part])} characters, more than {llm.capacity.context} tokens, the context limit, "
                "can hold; shorten the prompt"
            )
    return value if name == "text_input" else _render(llm, values)


def _render(llm: LLM, values: Mapping[str, Any]) -> list[int]:
    """Return the token ids of a conversation, which is given as JSON texts."""
    messages = _parse("messages", values["messages"], list)
    more = {name: _parse(name, values[name], kind) for name, kind in CHAT.items() if name in values}
    return llm.apply_chat_template(messages, **more)


def _parse(name: str, text: str, kind: type) -> Any:
    """Return the value of a JSON text, after checking that it is a list or an object, as `kind` says."""
    expected = "a JSON list" if kind is list else "a JSON object"
    value = parse_json(text, name, RequestError, f"expected {expected}")
    if not isinstance(value, kind):
        raise RequestError(f"{name}: got {type(value).__name__}, expected {expected}")
    return value


def _shorten(value: object) -> str:
    """Return the value as error messages show it, shortened where it is long."""
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
