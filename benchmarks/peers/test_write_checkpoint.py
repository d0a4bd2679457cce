"""Tests that the model of a GGUF file comes back from an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers import write_checkpoint
from enginewright.exporters.source.reference import load_reference
from tests.support.exporters.gguf_files import make_model, write_gguf


def test_transformers_reads_the_files_numbers(tmp_path: Path) -> None:
    file = write_gguf(make_model("llama"), tmp_path / "m.gguf", kinds={"attn_q": "Q8_0", "ffn": "Q4_1"})
    assert write_checkpoint.main(["--gguf", str(file), "--output", str(tmp_path / "checkpoint")]) == 0
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", attn_implementation="eager")
    expected = load_reference(str(file), ())
    assert read.dtype == torch.float32
    parameters = dict(read.named_parameters())
    assert parameters.keys() == dict(expected.named_parameters()).keys()
    assert all(torch.equal(parameters[name], values) for name, values in expected.named_parameters())
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(read(input_ids=tokens).logits, expected(input_ids=tokens).logits)


def test_what_is_there_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        write_checkpoint.main(["--gguf", "none.gguf", "--output", str(tmp_path)])
    assert f"--output: got {tmp_path}, which exists, expected a new folder" in capsys.readouterr().err
