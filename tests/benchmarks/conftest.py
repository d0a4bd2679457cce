"""The benchmarks' modules, and the tiny engine of the runtime's tests."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "runtime")]  # cache_codecs and the other modules here; tiny_engine
