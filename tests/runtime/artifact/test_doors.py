"""Tests of doors and extensions: what does not fit is refused with its place, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.runtime import cli
from enginewright.runtime.artifact.extension import extend
from enginewright.runtime.decoding.processor_kind import PROCESSORS
from enginewright.runtime.errors import ExtensionError
from tests.support.extensions import extended

KIND = "from enginewright.runtime.decoding.processor_kind import ProcessorKind\nPROCESSOR = ProcessorKind(name={!r})\n"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an extension of logits processors, given as names of modules with their text."""

    def files(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / "logits_processors" / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    return files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def (", r"mine: cannot be imported \(SyntaxError: .*\); mend it, or take it out"),
        ("import no_such_package", r"mine: cannot be imported \(ModuleNotFoundError: .*no_such_package"),
        ("1 / 0", r"mine: cannot be imported \(ZeroDivisionError"),
        ("PROCESSOR = 3", r"mine\.py: PROCESSOR: got an object of type int, expected a ProcessorKind"),
        (KIND.format(5), r"mine\.py: PROCESSOR: name: got 5, expected text"),
        (KIND.format("logit_bias"), r"mine\.py: .* the name 'logit_bias' is that of .*logit_bias\.py already"),
    ],
)
def test_a_module_that_does_not_fit_is_named(text: str, message: str, write: Write) -> None:
    before = PROCESSORS.names()
    with extended(write(mine=text)), pytest.raises(ExtensionError, match=message):
        PROCESSORS.names()
    assert PROCESSORS.names() == before


def test_a_module_that_another_one_hides_is_refused(write: Write) -> None:
    before = PROCESSORS.names()
    with pytest.raises(ExtensionError, match=r"logits_processors/logit_bias: got a module .* hide it; rename the file"):
        extend(write(logit_bias=KIND.format("mine")))
    assert PROCESSORS.names() == before


def test_two_extensions_may_not_hide_each_other_and_one_may_come_twice(write: Write, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "logits_processors").mkdir(parents=True)
    (other / "logits_processors/mine.py").write_text(KIND.format("third"))
    (tmp_path / "first").mkdir()
    first = write(mine=KIND.format("mine"))
    (first / "logits_processors").rename(tmp_path / "first/logits_processors")
    with extended(tmp_path / "first"):
        extend(tmp_path / "first")
        with pytest.raises(ExtensionError, match=r"other/logits_processors/mine: got a module of this name"):
            extend(other)
        assert "mine" in PROCESSORS.names() and "third" not in PROCESSORS.names()


def test_an_extension_without_a_name_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--extensions=", "methods"]) == 2
    assert "got no name, expected that of a folder" in capsys.readouterr().err


def test_modules_without_an_object_add_nothing_and_bundled_ones_are_known(write: Write) -> None:
    before = PROCESSORS.names()
    with extended(write(more=KIND.format("more"), helper="WIDTH = 3\n")):
        assert set(PROCESSORS.names()) == {*before, "more"}
        assert PROCESSORS.is_bundled("logit_bias") and not PROCESSORS.is_bundled("more")
    assert PROCESSORS.names() == before
    assert {"logit_bias", "repetition_penalty", "occurrence_penalty"} <= set(before)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match=r"nowhere: no such folder; expected one with methods, features"):
        extend(tmp_path / "nowhere")
    with pytest.raises(ExtensionError, match="got no folder in it, expected folders called methods"):
        extend(tmp_path)
    (tmp_path / "metods").mkdir()
    with pytest.raises(ExtensionError, match=r"got metods, expected folders called methods, .*keep others next to it"):
        extend(tmp_path)


@pytest.mark.parametrize("arguments", [["methods", "--extensions", "x"], ["methods", "--extensions=x"]])
def test_the_option_stands_before_the_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "--extensions stands before the command: enginewright --extensions DIR methods" in capsys.readouterr().err
