"""Writes the language reference of the running Python as a text to score, and as prompts of other topics to calibrate on.

    python -m benchmarks.topic_texts TEXT.txt PROMPTS.jsonl

The topics are those of `pydoc`'s help, in a fixed shuffled order. Other Python versions have other topics, so figures are
comparable only within one version.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

PROMPTS = 8
SHORTEST_PROMPT = 5000  # characters, so that a prompt has more than a thousand tokens


def main(arguments: Sequence[str]) -> int:
    """Write both files."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    text, prompts = split()
    Path(arguments[0]).write_text(text)
    Path(arguments[1]).write_text("".join(json.dumps({"text": each}) + "\n" for each in prompts))
    return 0


def split() -> tuple[str, list[str]]:
    """Return the text, and the prompts, whose topics the text does not have."""
    names = sorted(topics)
    random.Random(0).shuffle(names)
    chosen = [name for name in names if len(topics[name]) >= SHORTEST_PROMPT][:PROMPTS]
    return "\n\n".join(topics[name] for name in names if name not in chosen), [topics[name] for name in chosen]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
