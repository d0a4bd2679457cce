"""Places in the checkout that tests name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SUPPORT = ROOT / "tests/support"
TENSORRT_HOST = ROOT / "tests/plugins/hosts/tensorrt"
