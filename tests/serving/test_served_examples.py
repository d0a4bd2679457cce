"""Tests that the client examples run against the server, with the commands in their first lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from enginewright.runtime import LLM, Sampling
from tests.support.paths import EXAMPLES
from tests.support.serving.streams import MODEL
from tests.support.serving.tritonserver import Server

pytestmark = [pytest.mark.native, pytest.mark.slow]

QUESTION = "What is 47 + 385?"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_python_client(server: Server, llm: LLM) -> None:
    expected = llm.chat([{"role": "user", "content": QUESTION}])
    done = run(sys.executable, str(EXAMPLES / "triton_client.py"), server.grpc, MODEL, QUESTION)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{expected.text}\n[stop after {len(expected.token_ids)} tokens]\n"
    done = run(sys.executable, str(EXAMPLES / "triton_client.py"), server.grpc, "nobody", QUESTION)
    assert done.returncode == 1 and "the server refuses: " in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(server: Server, llm: LLM) -> None:
    done = run("sh", str(EXAMPLES / "triton_curl.sh"), server.http, MODEL)
    assert (done.returncode, done.stderr) == (0, "")
    whole, *pieces = [json.loads(line.removeprefix("data: ")) for line in done.stdout.splitlines() if line]
    assert whole["text_output"] == llm.chat([{"role": "user", "content": QUESTION}]).text
    sampling = Sampling(max_tokens=8, temperature=0.8, top_p=0.95, seed=1)
    assert "".join(piece["text_output"] for piece in pieces) == llm.generate("12 + 3", sampling)[0].text
    assert pieces[-1]["finish_reason"] in ("stop", "length")
