"""Tests of the doors: folders of the user's own, and what is refused in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginewright.runtime import cli
from enginewright.runtime.artifact.extension import Door, extend
from enginewright.runtime.decoding.processor_kind import PROCESSORS, ProcessorKind
from enginewright.runtime.errors import ExtensionError
from tests.support.extensions import extended

HEAD = "from enginewright.runtime.decoding.processor_kind import ProcessorKind\n"


def write(root: Path, **modules: str) -> Path:
    """A folder with these modules of logits processors."""
    folder = root / "mine" / "logits_processors"
    folder.mkdir(parents=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(HEAD + text)
    return root / "mine"


def test_a_module_in_a_folder_is_found_and_forgotten(tmp_path: Path) -> None:
    folder = write(tmp_path, more="PROCESSOR = ProcessorKind(name='more')\n", helper="WIDTH = 3\n")
    before = PROCESSORS.names()
    with extended(folder):
        extend(folder)  # again: nothing changes
        assert set(PROCESSORS.names()) == {*before, "more"}
        assert PROCESSORS.is_bundled("logit_bias") and not PROCESSORS.is_bundled("more")
    assert PROCESSORS.names() == before


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"more": "PROCESSOR = 3\n"}, r"more\.py: PROCESSOR: got an object of type int, expected a ProcessorKind"),
        (
            {"more": "PROCESSOR = ProcessorKind(name='logit_bias')\n"},
            r"more\.py: PROCESSOR: the name 'logit_bias' is that of .*logit_bias\.py already",
        ),
        (
            {"logit_bias": "PROCESSOR = ProcessorKind(name='other')\n"},
            r"logits_processors: got a module 'logit_bias', and .*processors has one, too; rename yours",
        ),
    ],
)
def test_modules_that_are_refused(tmp_path: Path, modules: dict[str, str], message: str) -> None:
    with extended(write(tmp_path, **modules)), pytest.raises(ExtensionError, match=message):
        PROCESSORS.entries()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match=r"nowhere: no such folder; expected one with methods, features"):
        extend(tmp_path / "nowhere")
    with pytest.raises(ExtensionError, match="got no folder in it, expected folders called methods"):
        extend(tmp_path)
    (tmp_path / "metods").mkdir()
    with pytest.raises(ExtensionError, match=r"got metods, expected folders called methods, .*keep others next to it"):
        extend(tmp_path)


def test_every_door_of_the_package_has_something_or_says_so() -> None:
    assert Door("enginewright.runtime.cache.policies", "POLICY", ProcessorKind).names() == ()
    assert {"logit_bias", "repetition_penalty", "occurrence_penalty"} <= set(PROCESSORS.names())


@pytest.mark.parametrize("arguments", [["methods", "--extensions", "x"], ["methods", "--extensions=x"]])
def test_the_option_stands_before_the_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "--extensions stands before the command: enginewright --extensions DIR methods" in capsys.readouterr().err
