"""Tests of the doors: one module in a folder of the user's own adds a method or the like, end to end on a trained model.

The modules lie in `tests/support/extension`; each test uses a copy of them, far from the package's files.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.build import build
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.methods.registry import choose_cache
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.runtime import LLM, ArtifactError, RequestError, Sampling, UnsupportedError, cli, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.requests.logits_processor import Floats, Ints, Stateless
from tests.support.extensions import SAMPLES, extended
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.native, pytest.mark.slow]

MODEL = EXAMPLES / "tiny-reasoner"
QUESTIONS = ("3 + 4 * 2", "9 - 5", "12 + 30 - 7 + 1")
LAYERS = (0, 2)


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's folder, next to the package's for as long as these tests run."""
    root = tmp_path_factory.mktemp("mine") / "extension"
    shutil.copytree(SAMPLES, root, ignore=shutil.ignore_patterns("__pycache__"))
    with extended(root):
        yield root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engines by what was applied to them; empty at first."""
    return {"": tmp_path_factory.mktemp("engines")}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The trained model."""
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()


def engine(made: dict[str, Path], *apply: str, weights: str = "float32", model: Path = MODEL) -> Path:
    """The engine with these methods and weights, built once."""
    key = f"{model.name} {weights} {' '.join(apply)}"
    if key not in made:
        made[key] = made[""] / str(len(made))
        recipe = Recipe(
            apply=tuple(map(parse_method, apply)),
            weights=parse_weights(weights),
            kv_bits=32,
            max_batch=4,
            max_context=1024,
        )
        build(str(model), made[key], recipe, "onnxruntime")
    return made[key]


def prompts_of(llm: LLM) -> list[list[int]]:
    """The questions in the model's chat format."""
    return [llm.apply_chat_template([{"role": "user", "content": question}]) for question in QUESTIONS]


def tokens_of(llm: LLM, sampling: Sampling | Sequence[Sampling]) -> list[tuple[int, ...]]:
    """The tokens of the answers to all questions."""
    return [completion.token_ids for completion in llm.generate(prompts_of(llm), sampling)]


# ---- methods


def test_a_method_changes_weights(made: dict[str, Path], model: PreTrainedModel) -> None:
    with load(engine(made, "halve:factor=0.25"), 1) as llm:
        ids = prompts_of(llm)[2]
        got = llm.logits(ids)
    layers = [layer.mlp.down_proj.weight for layer in model.model.layers]
    with torch.no_grad():
        before = model(torch.tensor([ids])).logits[0].numpy()
        for weight in layers:
            weight *= 0.25
        expected = model(torch.tensor([ids])).logits[0].numpy()
        for weight in layers:
            weight /= 0.25
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())
    assert np.abs(expected - before).max() > 1, "it matters"


def steered_logits(
    model: PreTrainedModel, tokens: Sequence[int], prompt: int, vectors: np.ndarray, scale: float
) -> np.ndarray:
    """The logits [n, vocab] of PyTorch's model with a vector added from the prompt's last token on."""

    def add(place: int) -> object:
        def hook(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, prompt - 1 :] += scale * torch.from_numpy(vectors[place])
            return output

        return model.model.layers[LAYERS[place]].self_attn.o_proj.register_forward_hook(hook)

    hooks = [add(place) for place in range(len(LAYERS))]
    with torch.no_grad():
        logits = model(torch.tensor([list(tokens)])).logits[0].numpy()
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]
    return np.asarray(logits)


def vectors_of(llm: LLM, seed: int) -> dict[str, np.ndarray]:
    """Vectors large enough to change answers."""
    size = llm.manifest.model.hidden_size
    return {"vectors": np.random.default_rng(seed).normal(0, 6, (len(LAYERS), size)).astype(np.float32)}


def check_steered(
    model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int], vectors: np.ndarray, scale: float
) -> None:
    """Check that greedy tokens are those of the steered model, up to rounding."""
    logits = steered_logits(model, [*prompt, *tokens][:-1], len(prompt), vectors, scale)[len(prompt) - 1 :]
    chosen = np.take_along_axis(logits, np.array(tokens)[:, None], axis=1)[:, 0]
    assert (chosen >= logits.max(axis=1) - 1e-3).all()


def test_a_method_adds_nodes_at_anchors_that_a_request_steers(made: dict[str, Path], model: PreTrainedModel) -> None:
    """Steered and plain requests in one batch get what each gets alone; an entry may be replaced between requests."""
    long = Sampling(max_tokens=24, ignore_eos=True)
    calm, wild = (
        Sampling(max_tokens=24, ignore_eos=True, conditions={"nudge": choice}) for choice in ("calm", ("wild", 0.5))
    )
    with load(engine(made), 1) as plain:
        unsteered = tokens_of(plain, long)
    with load(engine(made, f"nudge:layers={'+'.join(map(str, LAYERS))},capacity=2"), 1) as llm:
        assert tokens_of(llm, long) == unsteered, "an engine that nobody steers"
        with pytest.raises(RequestError, match=r"got 'calm', expected one of the entries none yet"):
            llm.generate(prompts_of(llm)[0], calm)
        known = {"calm": vectors_of(llm, 1), "wild": vectors_of(llm, 2)}
        for name, values in known.items():
            llm.add_condition("nudge", name, values)
        prompts, samplings = prompts_of(llm), [calm, long, wild]
        together = tokens_of(llm, samplings)
        assert together[1] == unsteered[1]
        assert together[0] != unsteered[0] and together[2] != unsteered[2]
        check_steered(model, prompts[0], together[0], known["calm"]["vectors"], 1.0)
        check_steered(model, prompts[2], together[2], known["wild"]["vectors"], 0.5)
        alone = [llm.generate(p, s)[0].token_ids for p, s in zip(prompts, samplings, strict=True)]
        assert alone == together
        llm.add_condition("nudge", "calm", known["wild"])
        check_steered(model, prompts[0], llm.generate(prompts[0], calm)[0].token_ids, known["wild"]["vectors"], 1.0)
        with pytest.raises(RequestError, match=r"the engine holds 2 \(calm, wild\); replace one"):
            llm.add_condition("nudge", "third", known["calm"])
        with pytest.raises(RequestError, match=r"got arrays?.*expected vectors|got the arrays none, expected vectors"):
            llm.add_condition("nudge", "calm", {})


def test_prefixes_of_steered_requests_are_shared_as_far_as_they_are_the_same(
    made: dict[str, Path], model: PreTrainedModel
) -> None:
    """A vector acts from the prompt's last token on: what lies before it is shared, that token's keys are not."""
    with load(engine(made, f"nudge:layers={'+'.join(map(str, LAYERS))},capacity=2"), 1) as llm:
        values = vectors_of(llm, 3)
        llm.add_condition("nudge", "calm", values)
        prompt = (prompts_of(llm)[2] * 40)[:384]  # three whole tiles
        steered = Sampling(max_tokens=6, ignore_eos=True, conditions={"nudge": "calm"})
        first = llm.generate(prompt, steered)[0]
        plain = llm.generate([*prompt, *prompt[:9]], Sampling(max_tokens=6, ignore_eos=True))[0]
        again = llm.generate(prompt, steered)[0]
        assert (first.reused_tokens, plain.reused_tokens, again.reused_tokens) == (0, 256, 256)
        assert again.token_ids == first.token_ids
        check_steered(model, prompt, first.token_ids, values["vectors"], 1.0)
    with load(engine(made), 1) as whole:
        assert (
            whole.generate([*prompt, *prompt[:9]], Sampling(max_tokens=6, ignore_eos=True))[0].token_ids
            == plain.token_ids
        )


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"mood": "calm"}, r"got 'mood', and the engine has the conditions nudge"),
        ({"nudge": "unknown"}, r"\['nudge'\]: got 'unknown'"),
        ({"nudge": 3}, r"\['nudge'\]: got 3, expected the name of an entry"),
        ({"nudge": ("calm", float("nan"))}, r"\['nudge'\]: got \('calm', nan\)"),
    ],
)
def test_conditions_that_nobody_declared(made: dict[str, Path], conditions: Mapping[str, object], message: str) -> None:
    steered = engine(made, f"nudge:layers={'+'.join(map(str, LAYERS))},capacity=2")
    with load(steered, 1) as llm, pytest.raises(RequestError, match=message):
        llm.generate("1 + 1", Sampling(conditions=conditions))  # type: ignore[arg-type]
    with load(engine(made), 1) as llm, pytest.raises(RequestError, match="conditions"):
        llm.generate("1 + 1", Sampling(conditions=conditions))  # type: ignore[arg-type]


# ---- the runtime


def test_a_decoding_kind_gives_the_tokens_of_plain_decoding_in_fewer_steps(made: dict[str, Path]) -> None:
    sampling = Sampling(max_tokens=60)
    with load(engine(made), 1) as plain:
        expected = tokens_of(plain, sampling)
    with load(engine(made, "jacobi:block=5"), 1) as llm:
        done = llm.generate(prompts_of(llm), sampling)
        assert [each.token_ids for each in done] == expected
        assert sum(each.agreed_tokens for each in done) > 10
        assert llm.logits([5, 6, 7]).shape == (3, llm.manifest.model.vocab_size)


def test_a_decoding_kind_fills_an_input_of_the_graph(made: dict[str, Path]) -> None:
    """A token without a mark attends as ever; marked ones, whose queries count for nothing, give other tokens."""
    sampling = Sampling(max_tokens=20, ignore_eos=True)
    with load(engine(made), 1) as plain:
        expected = tokens_of(plain, sampling)
    with load(engine(made, "placed"), 1) as llm:
        assert llm.manifest.token_inputs == {"marks": "int32"}
        assert tokens_of(llm, sampling) == expected
    other = made[""] / "marked"
    if not other.exists():
        shutil.copytree(engine(made, "placed"), other)
    manifest = directory.load(other)
    directory.save(dataclasses.replace(manifest, decoding={**manifest.decoding, "marked": True}), other)
    with load(other, 1) as llm:
        assert tokens_of(llm, sampling) != expected
    directory.save(dataclasses.replace(manifest, decoding={"kind": "autoregressive"}), other)
    with pytest.raises(ArtifactError, match="'autoregressive' fills the inputs none, and the decoder graph has marks"):
        load(other, 1)


class NotTwice(Stateless):
    """Rules out the token that came last."""

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Rule it out."""
        logits[tokens[-1]] = -np.inf


def test_a_logits_processor_judges_plain_tokens_and_drafts(made: dict[str, Path]) -> None:
    allowed = [40, 41, 42]
    for changes in ({"alternate": {"allowed": allowed}}, {"mine": lambda prompt, vocab: NotTwice()}):
        sampling = Sampling(max_tokens=20, ignore_eos=True, logits_processors=changes)
        with load(engine(made), 1) as plain, load(engine(made, "jacobi:block=5"), 1) as llm:
            expected = tokens_of(plain, sampling)
            assert tokens_of(llm, sampling) == expected
        if "alternate" in changes:
            assert all(set(tokens[1::2]) <= set(allowed) for tokens in expected)
        else:
            assert all(a != b for tokens in expected for a, b in zip(tokens[1:], tokens[:-1], strict=True))


def test_a_processor_that_fails_or_leaves_no_token_ends_its_request_alone(made: dict[str, Path]) -> None:
    def broken(prompt: Ints, vocab: int) -> Stateless:
        class Broken(Stateless):
            def process(self, logits: Floats, tokens: Ints) -> None:
                raise KeyError("mine")

        return Broken()

    def nothing(prompt: Ints, vocab: int) -> Stateless:
        class Nothing(Stateless):
            def process(self, logits: Floats, tokens: Ints) -> None:
                logits[:] = -np.inf

        return Nothing()

    with load(engine(made), 1) as llm:
        long = Sampling(max_tokens=30, ignore_eos=True)
        expected = llm.generate([5, 6, 7], long)[0].token_ids
        other = llm.submit([5, 6, 7], long)
        for factory, message in (
            (broken, r"error from a processor \(KeyError\('mine'\)\)"),
            (nothing, "none is finite"),
        ):
            with pytest.raises(RequestError, match=message):
                llm.generate([5, 6, 7], Sampling(max_tokens=4, logits_processors={"it": factory}))
        assert other.result().token_ids == expected
        with pytest.raises(
            RequestError, match=r"got 'unheard', expected one that is installed \(alternate, bad_words, "
        ):
            llm.generate([5], Sampling(logits_processors={"unheard": {}}))
        with pytest.raises(RequestError, match="alternate: got the options"):
            llm.generate([5], Sampling(logits_processors={"alternate": {"wrong": 1}}))


def test_a_policy_that_does_not_fit_the_format_of_another_method_is_refused() -> None:
    applied = [parse_method("keep_ends"), parse_method("kvarn")]
    with pytest.raises(UnsupportedError, match="keep_ends: got a kvarn cache, expected a paged one"):
        choose_cache(applied, PagedCacheFormat(16))


def test_a_cache_policy_bounds_what_a_request_stores(made: dict[str, Path]) -> None:
    with load(engine(made, "keep_ends"), 1) as llm:
        assert llm.manifest.cache.policy == {"kind": "first_and_newest", "first": 1, "newest": 1}
        most = [0]
        tables = llm.loop.scheduler.tables
        llm.loop.observer = lambda _: most.append(int(tables.kv_lens.max()))
        completion = llm.generate([5, 6, 7], Sampling(max_tokens=900, ignore_eos=True))[0]
        assert len(completion.token_ids) == 900 and max(most) <= 3 * 128
    assert tables.use == 0


# ---- weights and checkpoints


def test_a_stored_form_of_weights(made: dict[str, Path]) -> None:
    root = engine(made, weights="half")
    assert directory.load(root).weights["kind"] == "half"
    with load(root, 1) as llm, load(engine(made), 1) as plain:
        ids = prompts_of(llm)[2]
        np.testing.assert_allclose(llm.logits(ids), plain.logits(ids), atol=1e-3)  # the checkpoint's own are bfloat16
    sizes = [sum(file.size for file in directory.load(each).graphs["decoder"].files) for each in (root, engine(made))]
    assert sizes[0] < 0.55 * sizes[1]


def test_a_checkpoint_of_another_format(made: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "arrays"
    other.mkdir()
    for path in MODEL.glob("*.json"):
        shutil.copyfile(path, other / path.name)
    for name, values in load_file(MODEL / "model.safetensors").items():
        np.save(other / f"{name}.npy", values.float().numpy())
    (other / "model.safetensors.index.json").unlink(missing_ok=True)
    with load(engine(made, model=other), 1) as llm, load(engine(made), 1) as plain:
        ids = llm.tokenizer.encode("3 + 4") if llm.tokenizer else [5, 6]
        np.testing.assert_array_equal(llm.logits(ids), plain.logits(ids))


def test_the_command_line_takes_the_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extensions = ["--extensions", str(folder)]
    assert cli.main([*extensions, "methods"]) == 0
    listed = capsys.readouterr().out
    assert "nudge" in listed and "halve" in listed and "kvarn" in listed
    made = [
        "build",
        "--model",
        str(MODEL),
        "--output",
        str(tmp_path / "engine"),
        "--apply",
        "halve",
        "--max-context",
        "64",
    ]
    assert cli.main([*extensions, *made]) == 0
    capsys.readouterr()
    assert cli.main([*extensions, "inspect", str(tmp_path / "engine"), "--json"]) == 0
    assert "halve" in json.dumps(json.loads(capsys.readouterr().out))
    assert cli.main(["--extensions", str(tmp_path / "nowhere"), "methods"]) == 2
    assert "no such folder" in capsys.readouterr().err
