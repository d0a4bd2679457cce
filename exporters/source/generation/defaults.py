"""Turns a checkpoint's generation settings into an engine's defaults, so that it answers as transformers' `generate` does.

Three things are taken from transformers that no file says. Without `do_sample`, tokens are greedy, and `temperature` does
not act. With it, a missing temperature is 1, and a missing top_k is 50: files leave it out where it is that. Where
nothing is said of lengths, answers end as late as they can, not after transformers' 20 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginewright.exporters.source.checkpoint import GENERATION, Checkpoint
from enginewright.exporters.source.generation.generation_settings import Settings, open_settings
from enginewright.exporters.source.generation.keys import UNUSED, WITHOUT_EFFECT
from enginewright.exporters.source.generation.processors import LOGITS_SETTINGS, read_processors
from enginewright.runtime.artifact.generation_defaults import GenerationDefaults
from enginewright.runtime.artifact.sampling_ranges import expected_instead, is_number

_TOP_K = 50
_RULES: dict[str, Callable[[float], bool]] = {  # rules of sampling -> whether transformers takes a number for "off"
    "top_k": lambda v: v == 0,
    "top_p": lambda v: v >= 1,
    "min_p": lambda v: v == 0,
    "typical_p": lambda v: v >= 1,
    "epsilon_cutoff": lambda v: not 0 < v < 1,
    "eta_cutoff": lambda v: not 0 < v < 1,
}
_OTHERS = ("do_sample", "temperature", "repetition_penalty", "max_new_tokens", "max_length", "stop_strings")


def read_defaults(checkpoint: Checkpoint, end_tokens: tuple[int, ...], *, has_tokenizer: bool) -> GenerationDefaults:
    """Return the engine's defaults, and add the settings that it does not act on to `checkpoint.unused`.

    end_tokens: ids of the tokens that end a text.
    has_tokenizer: whether the engine can turn tokens into text.

    Raises:
        ExportError: a setting that acts has a type or a value that transformers refuses as well.
    """
    settings = open_settings(checkpoint)
    _name_unused(settings)
    values: dict[str, Any] = {
        **_sampling(settings),
        "max_tokens": settings.count("max_new_tokens", 1),
        "max_length": settings.count("max_length", 1),
        "stop": _stop_strings(settings, has_tokenizer=has_tokenizer),
        "logits_processors": read_processors(settings, end_tokens),
    }
    if (penalty := settings.get("repetition_penalty")) is not None and penalty != 1:
        if expected := expected_instead("repetition_penalty", penalty):
            settings.refuse("repetition_penalty", expected)
        values["repetition_penalty"] = float(penalty)
    return GenerationDefaults(**values)


def _sampling(settings: Settings) -> dict[str, Any]:
    """The temperature, where tokens are drawn by default, and the rules, which also act where a request's own draws them."""
    samples = settings.flag("do_sample")
    values: dict[str, Any] = {}
    if samples:
        temperature = settings.values.get("temperature", 1.0)
        if expected_instead("temperature", temperature) or temperature == 0:
            settings.refuse("temperature", "a number above 0 with do_sample, or do_sample false")
        values = {"temperature": float(temperature), "top_k": _TOP_K}
    for name, is_off in _RULES.items():
        value = settings.get(name)
        if value is None:
            continue
        if is_number(value, int if name == "top_k" else float) and is_off(value):
            values.pop(name, None)
        elif (expected := expected_instead(name, value)) is None:
            values[name] = value if name == "top_k" else float(value)
        elif samples:
            settings.refuse(name, expected)
        else:
            settings.leave(name, f"got {value!r}, expected {expected}; it would act where a request samples")
    return values


def _stop_strings(settings: Settings, *, has_tokenizer: bool) -> tuple[str, ...]:
    found = settings.values.get("stop_strings", [])
    strings = (found,) if isinstance(found, str) else tuple(found) if isinstance(found, list) else (None,)
    if not all(isinstance(string, str) and string for string in strings):
        settings.refuse("stop_strings", "a string or a list of strings that are not empty")
    if strings and not has_tokenizer:
        settings.leave("stop_strings", "the checkpoint has no tokenizer, so an engine sees no text")
        return ()
    return strings


def _name_unused(settings: Settings) -> None:
    """Name the settings that an engine does not act on though transformers does, and those that are not known."""
    known = {*_RULES, *_OTHERS, *LOGITS_SETTINGS, *UNUSED, *WITHOUT_EFFECT}
    for key, (neutral, reason) in UNUSED.items():
        value = settings.get(key)
        if value is not None and value not in neutral:
            settings.leave(key, reason)
    if settings.file == GENERATION:
        unknown = sorted(settings.values.keys() - known)
        settings.unused.add(settings.file, unknown, "this version does not know the setting, as transformers does not")
