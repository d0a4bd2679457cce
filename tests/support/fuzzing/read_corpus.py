"""The corpus: inputs that once ended in a traceback, took all memory, or passed; each as small as it can be."""

from __future__ import annotations

import json
from typing import Any

from tests.support.paths import ROOT

CORPUS = ROOT / "tests/fuzz/corpus"


def read_corpus(kind: str) -> list[dict[str, Any]]:
    """Return the entries of corpus/KIND.jsonl; each is a place in a valid file, and the value to put there."""
    return [json.loads(line) for line in (CORPUS / f"{kind}.jsonl").read_text().splitlines()]
