"""Tests of tied parameters that part."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from enginewright.exporters.source.tied import untie
from tests.support.exporters.adapted import make_base

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_other_values_part(tmp_path: Path) -> None:
    base = make_base("qwen2", tmp_path / "model")
    weights = {**base.weights, HEAD: base.weights[HEAD].derive((250, 64), lambda w: w + 1)}
    untie(base.model, weights)
    assert base.model.lm_head.weight is not base.model.model.embed_tokens.weight
    assert base.model.lm_head.weight.shape == (250, 64)
    assert not base.model.config.tie_word_embeddings


def test_equal_values_stay_tied(tmp_path: Path) -> None:
    base = make_base("qwen2", tmp_path / "model")
    weights = {**base.weights, HEAD: dataclasses.replace(base.weights[HEAD])}
    untie(base.model, weights)
    assert weights[HEAD] is weights[EMBEDDING]
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    assert base.model.config.tie_word_embeddings


def test_what_was_not_tied_stays(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "model")
    before = {name: id(parameter) for name, parameter in base.model.named_parameters()}
    weights = {**base.weights, HEAD: base.weights[HEAD].derive((250, 60), lambda w: np.zeros_like(w))}
    untie(base.model, weights)
    assert {name: id(parameter) for name, parameter in base.model.named_parameters()} == before
