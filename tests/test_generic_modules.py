"""Tests that generic modules name no method or feature: what is special about one lies in its own folder."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.paths import ROOT

WORDS = re.compile(
    r"kvarn|clp|piso|lora|nsru|medusa|(?<![a-z])tada|depth.?(?:attention|mix)|function.?vector|steering", re.IGNORECASE
)
PACKAGES = ("exporters", "builders", "runtime")
OWN = ("exporters/methods/", "exporters/features/")
GENERIC = {  # modules in those folders that serve all of them
    *(f"exporters/methods/{name}.py" for name in ("anchors", "hooks", "registry", "tolerance", "tuner")),
    *(f"exporters/features/{name}.py" for name in ("feature", "registry")),
}

# Modules that hold such a name all the same: the words, and why.
ALLOWED = {
    "exporters/source/supported_models.py": (
        {"lora"},
        "kv_lora_rank, a key of configs that has nothing to do with adapters",
    ),
    "exporters/recipe.py": ({"lora"}, "an example of the syntax in a docstring"),
    "builders/passes/fuse_split_qkv.py": ({"depthmix"}, "an op in the docstring, as a reader of what the pass fuses"),
    "runtime/artifact/decoder_graph.py": ({"kvarn"}, "an example of a cache that encodes, in a docstring"),
    "runtime/artifact/manifest.py": ({"kvarn", "lora"}, "a kind of cache and a kind of adapter, in docstrings"),
    "runtime/commands/run.py": ({"lora"}, "the kind of adapter, in a help text"),
    "runtime/decoding/kinds/multi_token.py": ({"clp"}, "names of the outputs that this kind of decoding reads"),
    "runtime/artifact/adapters/read_adapter.py": (
        {"lora"},
        "the kind of adapter that it reads, and names of its tensors",
    ),
    "runtime/artifact/adapters/settings.py": ({"lora"}, "the kind of adapter, and the keys of its settings"),
    "runtime/llm.py": ({"kvarn", "lora"}, "a kind of cache and a kind of adapter, in docstrings"),
    "runtime/requests/sampling.py": ({"lora"}, "the kind of adapter, in a docstring"),
    "runtime/triton/ports.py": ({"lora"}, "lora_name, an input of another backend"),
    "runtime/loader.py": ({"kvarn"}, "the effect of a kind of cache on options, in a docstring"),
}


def names_in_generic_modules() -> Iterator[tuple[str, int, str]]:
    """Path, line and word of every name of a method or feature outside its own folder."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith(OWN) and place not in GENERIC:
                continue
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                yield from ((place, number, word.lower()) for word in WORDS.findall(line))


def test_generic_modules_name_no_method() -> None:
    wrong = [
        f"{place}:{number} names {word}"
        for place, number, word in names_in_generic_modules()
        if word not in ALLOWED.get(place, (set[str](), ""))[0]
    ]
    assert not wrong, "a method's own folder is the place for what is special about it"


def test_the_generic_modules_are_there() -> None:
    assert all((ROOT / place).is_file() for place in (*GENERIC, *ALLOWED))


def test_what_is_allowed_is_needed() -> None:
    """An entry of ALLOWED that no line needs any more is taken out."""
    found = {(place, word) for place, _, word in names_in_generic_modules()}
    stale = [(place, word) for place, (words, _) in ALLOWED.items() for word in words if (place, word) not in found]
    assert not stale
