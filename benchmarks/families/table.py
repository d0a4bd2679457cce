"""The results of a sweep as a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.families.small_configs import model_types, whole_types
from benchmarks.families.variants import FLOAT_ERROR, VARIANTS
from benchmarks.families.verdicts import Sweep, TypeResult, Verdict

HEADINGS = {
    "float32": "float32: largest error",
    "plugins none": "standard ops: largest error",
    "int8": "int8: mean KL",
    "kvarn": "KVarN: part of its effect",
}


def page(sweep: Sweep) -> str:
    """The page in Markdown: how it was made, the types that are right or wrong, and those that are refused."""
    results = [sweep.results[name] for name in sorted(sweep.results)]
    built = [result for result in results if result.kind == "right" or result.variants]
    others = [result for result in results if result not in built]
    return "\n".join(
        [
            *_introduction(sweep, results),
            *_figures(built),
            "",
            "## Refused",
            "",
            *_reasons(others),
            "",
            *_text_parts(sweep),
            "",
        ]
    )


def _introduction(sweep: Sweep, results: Sequence[TypeResult]) -> list[str]:
    kinds = [result.kind for result in results]
    commits = ", ".join(sorted({result.commit for result in results}))
    versions = ", ".join(f"{name} {version}" for name, version in sweep.versions.items())
    return [
        "# Model families",
        "",
        f"Of {len(kinds)} model types of which transformers has a causal language model, {kinds.count('right')} are right and",
        f"{kinds.count('refused')} are refused with a reason; {kinds.count('wrong')} are wrong. The page is written by",
        "`nox -s families -- --write docs/reference/families.md`",
        f"({versions}; commit {commits}).",
        "",
        "Each type is a random checkpoint of three or four small layers that looks trained: norms that are not one, biases and",
        "persistent buffers that are not zero, dense layers and layers of experts, and a window of 133 tokens where the type has",
        "windows. Prompts have 1, 150 and 300 tokens (430 for KVarN), so they are longer than the window and go over several",
        "tiles; greedy tokens are compared, too. What is compared:",
        "",
        "* *float32*: a 32-bit cache. The largest error of a logit next to transformers' eager model; right up to",
        f"  {FLOAT_ERROR:.0e} of the largest logit, which is 2 to 8: the order of float32 sums explains that.",
        "* *Standard ops*: the same for a graph without our ops (`--plugins none`).",
        "* *int8*: mean KL of the model to the engine with 8-bit weights, in nats a token; right within the tolerance of",
        "  `enginewright check`. Random weights lose more than trained ones.",
        "* *KVarN*: the largest error next to the model whose attention is the method's oracle, as a part of what the method",
        "  itself changes; right if it is a tenth at most in 95 % of the tokens. Sums in another order round a few codes the",
        "  other way, and where a token is near a tie between experts, that sends it to others.",
        "",
        "Sizes, and the settings that a type needs beyond them, are in `benchmarks/families/small_configs.py`. A type can",
        "also be refused for settings that its small model does not have, such as scaled rotary embeddings that are not known,",
        "or the convolutions that published checkpoints of `lfm2` have.",
        "",
        *_missing(results),
        "## Built and compared",
        "",
    ]


def _text_parts(sweep: Sweep) -> list[str]:
    """The section about multimodal types: the figures of those that are built, and the reasons of the others."""
    results = [sweep.text_parts[name] for name in sorted(sweep.text_parts)]
    built = [result for result in results if result.variants]
    others = [result for result in results if not result.variants]
    kinds = [result.kind for result in results]
    commits = ", ".join(sorted({result.commit for result in results}))
    return [
        "## Text parts of multimodal models",
        "",
        f"Of {len(kinds)} multimodal types of which transformers has a class that generates text, the text parts of",
        f"{kinds.count('right')} are right and {kinds.count('refused')} are refused with a reason; "
        f"{kinds.count('wrong')} are wrong. Each is a whole random model that is saved by",
        "transformers, with few layers in its other parts. The engine of its text part, with a 32-bit cache, is compared with",
        f"the whole model on text alone, in float32 as above (commit {commits}).",
        "",
        *_not_tried(set(whole_types()) - {result.model_type for result in results}),
        "| type | text part of type | largest error |",
        "|---|---|---|",
        *(
            f"| `{each.model_type}` | `{each.traits[0]}`{_note(each)} | {_cell(each.variants, 'float32')} |"
            for each in built
        ),
        "",
        *_reasons(others),
    ]


def _note(result: TypeResult) -> str:
    return "".join(f" ({trait})" for trait in result.traits[1:])


def _missing(results: Iterable[TypeResult]) -> list[str]:
    """A sentence about types that no sweep has tried yet."""
    return _not_tried(set(model_types()) - {result.model_type for result in results})


def _not_tried(missing: set[str]) -> list[str]:
    if not missing:
        return []
    return [f"**Not tried yet** ({len(missing)}): {', '.join(f'`{name}`' for name in sorted(missing))}.", ""]


def _figures(results: Iterable[TypeResult]) -> list[str]:
    heads = " | ".join(HEADINGS[name] for name in VARIANTS)
    lines = [f"| type | its small model has | {heads} |", "|---|---|" + "---|" * len(VARIANTS)]
    for result in results:
        cells = " | ".join(_cell(result.variants, name) for name in VARIANTS)
        lines.append(f"| `{result.model_type}` | {', '.join(result.traits)} | {cells} |")
    return lines


def _cell(variants: Mapping[str, Verdict], name: str) -> str:
    verdict = variants.get(name)
    if verdict is None:
        return "not run"
    if verdict.kind == "refused":
        return f"refused: {_plain(verdict.told)}"
    figure = "" if verdict.value is None else f"{verdict.value:.1e}"
    return figure if verdict.kind == "right" else f"**wrong**: {_plain(verdict.told)}"


def _reasons(results: Iterable[TypeResult]) -> list[str]:
    lines = ["| type | reason |", "|---|---|"]
    for result in results:
        told = result.refusal or f"**wrong**: {result.failure}"
        lines.append(f"| `{result.model_type}` | {_plain(told.removeprefix(f'{result.model_type}: '))} |")
    return lines


def _plain(text: str) -> str:
    """Text that is safe in a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
