"""Tests of an engine of a real model, from its GGUF file to answers: transformers' float32 model judges every token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime import Sampling, load
from tests.support.real_models import real_model

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.native]

QUESTIONS = ("What is 2 + 2?", "Why is the sky blue?", "What does a compiler do?")


def test_smollm2_answers_as_its_float_model_would(tmp_path: Path) -> None:
    """The default engine has the file's codes and rounds activations: what it chooses instead is nearly as probable."""
    file = real_model("smollm2")
    build(str(file), tmp_path / "engine", Recipe(max_batch=4, max_context=256), "onnxruntime", trial="none")
    with load(tmp_path / "engine", threads=1) as llm:
        prompts = [llm.apply_chat_template([{"role": "user", "content": text}]) for text in QUESTIONS]
        answers = llm.generate(prompts, Sampling(max_tokens=40))
    assert "4" in answers[0].text and answers[0].finish_reason == "stop"
    model = load_reference(str(file), ())
    given_up = []
    for prompt, answer in zip(prompts, answers, strict=True):
        text = torch.tensor([[*prompt, *answer.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=text).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        given_up.append(logits.amax(-1) - chosen)
    loss = torch.cat(given_up)
    assert (loss == 0).double().mean() > 0.9  # 97 % of 1,280 tokens measured
    assert loss.max() < 1  # logits; 0.45 measured
