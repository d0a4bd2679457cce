"""The corpus: inputs that once ended in a traceback, took all memory, or passed; each as small as it can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"


def read_corpus(kind: str) -> list[dict[str, Any]]:
    """Return the entries of corpus/KIND.jsonl; each is a place in a valid file, and the value to put there."""
    return [json.loads(line) for line in (CORPUS / f"{kind}.jsonl").read_text().splitlines()]
