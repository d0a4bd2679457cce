"""Tests of the command `enginewright`: output, errors and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from enginewright.runtime import cli
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Cache, CacheLayer, Limits, Manifest, Model
from tests.support.runtime.conditioned_engines import add_conditions, add_entries, steering

Capture = pytest.CaptureFixture[str]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}{% for d in documents or [] %}({{ d.text }}){% endfor %}{{ mood }}"
)


@pytest.fixture(scope="module")
def chat_engine(make_engine: Callable[..., Path], byte_tokenizer: tokenizers.Tokenizer) -> Path:
    """A tiny engine with a chat template."""
    return make_engine(tokenizer=byte_tokenizer, config=json.dumps({"chat_template": TEMPLATE}))


def _fails(capsys: Capture, *arguments: str) -> str:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err


@pytest.mark.native
def test_run_streams_what_generate_returns(capsys: Capture, chat_engine: Path) -> None:
    command = [
        "run",
        str(chat_engine),
        "--prompt",
        "the cat",
        "--max-tokens",
        "12",
        "--temperature",
        "1",
        "--seed",
        "5",
    ]
    assert cli.main([*command, "--threads", "1"]) == 0
    streamed = capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert streamed == done["text"] + "\n"
    assert done["seed"] == 5 and len(done["token_ids"]) <= 12 and done["finish_reason"] in ("stop", "length")


@pytest.mark.native
def test_run_sends_chat_messages(capsys: Capture, chat_engine: Path, byte_tokenizer: tokenizers.Tokenizer) -> None:
    command = ["run", str(chat_engine), "--prompt", "hi", "--max-tokens", "2", "--json"]
    for options, text in (
        (["--chat"], "<user>hi"),
        (["--system", "be"], "<system>be<user>hi"),
        (["--system", ""], "<system><user>hi"),  # an option with an empty text is given all the same
    ):
        assert cli.main([*command, *options]) == 0
        assert json.loads(capsys.readouterr().out)["prompt_tokens"] == len(byte_tokenizer.encode(text).ids)


@pytest.mark.native
def test_run_reads_conversations_and_what_goes_with_them(
    capsys: Capture, chat_engine: Path, byte_tokenizer: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    def written(name: str, value: object) -> str:
        (tmp_path / name).write_text(json.dumps(value))
        return str(tmp_path / name)

    talk = written("talk.json", [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}])
    tools, documents = written("tools.json", [{"name": "find"}]), written("documents.json", [{"text": "page"}])
    for options, text in (
        (["--messages", talk], "<user>hi<assistant>yes"),
        (["--prompt", "a", "--tools", tools, "--documents", documents], "<user>a[find](page)"),
        (["--prompt", "a", "--chat-template-kwargs", '{"mood": "glad"}'], "<user>aglad"),
        (["--prompt", "a", "--chat-template", "{{ messages[0].content }}!"], "a!"),
    ):
        assert cli.main(["run", str(chat_engine), "--max-tokens", "2", "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["prompt_tokens"] == len(byte_tokenizer.encode(text).ids)


def test_run_names_options_of_conversations_that_are_wrong(capsys: Capture, chat_engine: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "talk.json").write_text('[{"role": "user", "content": "hi"}]')
    (tmp_path / "one.json").write_text('{"messages": []}')
    bad, talk, one = (str(tmp_path / name) for name in ("bad.json", "talk.json", "one.json"))
    run = ["run", str(chat_engine), "--prompt", "x"]
    assert "bad.json: not valid JSON" in _fails(capsys, *run, "--tools", bad)
    assert "deep.json: not valid JSON" in _fails(capsys, *run, "--documents", str(tmp_path / "deep.json"))
    assert "none.json: cannot be read" in _fails(capsys, *run, "--messages", str(tmp_path / "none.json"))
    assert "chat_template_kwargs: got 'x', expected an object" in _fails(capsys, *run, "--chat-template-kwargs", '"x"')
    assert "one.json: got a JSON dict, expected a list of messages" in _fails(capsys, *run, "--messages", one)
    assert "one.json: got a JSON dict, expected a list of schemas" in _fails(capsys, *run, "--tools", one)
    assert "--chat-template-kwargs: not valid JSON" in _fails(capsys, *run, "--chat-template-kwargs", "{")
    assert "got colour, expected no more than" in _fails(capsys, *run, "--chat-template-kwargs", '{"colour": 1}')
    assert "--chat-template-kwargs: not valid JSON" in _fails(capsys, *run, "--chat-template-kwargs", "")
    assert "chat_template: got ''" in _fails(capsys, *run, "--chat-template", "")
    alone = ["run", str(chat_engine), "--messages", talk, "--system", "be"]
    assert "--system: got no prompt to go before" in _fails(capsys, *alone)


@pytest.mark.native
def test_bench_measures(capsys: Capture, tiny_engine: Path) -> None:
    command = [
        "bench",
        str(tiny_engine),
        "--prompt-tokens",
        "9",
        "--new-tokens",
        "12",
        "--batch",
        "1,3",
        "--repeat",
        "1",
    ]
    assert cli.main([*command, "--json", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "", "quiet when not a terminal"
    one, three = json.loads(captured.out)
    assert (one["batch"], three["batch"]) == (1, 3)
    assert {result.pop("agreement") for result in (one, three)} == {None}, "one token a step"
    assert {result.pop("evicting") for result in (one, three)} == {None}, "no policy"
    assert all(value > 0 for result in (one, three) for value in result.values())
    assert cli.main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_inspect_describes(capsys: Capture, tiny_engine: Path) -> None:
    assert cli.main(["inspect", str(tiny_engine)]) == 0
    text = capsys.readouterr().out
    assert "PagedAttention version 1" in text and "256 bytes per token" in text and "1 windowed layers" in text
    assert cli.main(["inspect", str(tiny_engine), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    files = {file.path: file.size for file in directory.load(tiny_engine).files()}
    assert described["files"] == files and described["total_bytes"] == sum(files.values())
    assert described["cache"]["tokens_per_gib"] == 2**30 // 256
    assert described["conditions"] == {}
    manifest = directory.load(tiny_engine)
    assert described["end_tokens"] == list(manifest.model.eos_token_ids) != []
    assert f"  ends with {', '.join(map(str, manifest.model.eos_token_ids))}\n" in text


def test_inspect_and_bench_say_or_check_what_loading_checks(capsys: Capture, tiny_engine: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_engine, tmp_path / "engine"))
    inspect = ["inspect", str(root)]
    assert cli.main(inspect) == 0
    assert "contents not compared with their checksums; --verify does" in capsys.readouterr().out
    assert cli.main([*inspect, "--verify"]) == 0
    assert "contents compared with their checksums" in capsys.readouterr().out
    graph = root / directory.load(root).graphs["decoder"].files[0].path
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert cli.main(inspect) == 0
    capsys.readouterr()
    for command in ([*inspect, "--verify"], ["bench", str(root)]):
        assert "content differs from manifest.json (sha256)" in _fails(capsys, *command)


def test_inspect_says_what_chat_templates_read(
    capsys: Capture, make_engine: Callable[..., Path], byte_tokenizer: tokenizers.Tokenizer
) -> None:
    templates = [
        {"name": "default", "template": "{% for m in messages %}{{ m.content }}{{ mood }}{% endfor %}"},
        {"name": "tool_use", "template": "{{ tools }}{{ messages }}"},
    ]
    root = make_engine(tokenizer=byte_tokenizer, config=json.dumps({"chat_template": templates}))
    assert cli.main(["inspect", str(root)]) == 0
    text = capsys.readouterr().out
    assert (
        "  chat      default reads messages, mood\n" in text and "  chat      tool_use reads messages, tools\n" in text
    )


def test_inspect_names_conditions(capsys: Capture, make_engine: Callable[..., Path], tmp_path: Path) -> None:
    conditions = {"steer": steering(64, scaled=True, applies="decoded"), "tone": steering(64, per="row")}
    root = add_conditions(make_engine(), tmp_path / "engine", conditions)
    add_entries(root, "steer", {"calm": {"vector": np.zeros(64, np.float32)}})
    assert cli.main(["inspect", str(root)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "condition " in line]
    assert lines == [
        "  condition steer: per token, with a factor, for decoded tokens; 3 entries at most: calm",
        "  condition tone: per row, for all tokens; 3 entries at most: none yet",
    ]


def test_inspect_says_what_an_encoded_cache_holds(capsys: Capture, tmp_path: Path) -> None:
    """Two layers of 2 heads and 128 dimensions, K at 4 and V at 2 bits, and one plain layer with a window of 256."""
    encoded = {"kv_heads": 2, "key_dim": 128, "value_dim": 128, "tile_bytes": 13824, "exact_bytes": 65536}
    windowed = {"kv_heads": 1, "key_dim": 128, "value_dim": 128, "tile_bytes": 65536, "window": 256}
    layers = tuple(CacheLayer(**layer) for layer in (encoded, encoded, windowed))
    manifest = Manifest(
        name="hand-made",
        created_by="tests",
        model=Model(family="toy", vocab_size=9, hidden_size=8, max_positions=4096, parameters=1),
        limits=Limits(max_batch=4, max_context=4096),
        cache=Cache(kind="kvarn", tile_tokens=128, kv_bits=16, layers=layers),
        graphs={},
    )
    directory.save(manifest, tmp_path)
    inspect = ["inspect", str(tmp_path)]
    assert cli.main([*inspect, "--json"]) == 0
    cache = json.loads(capsys.readouterr().out)["cache"]
    exact = 2 * 2 * 2 * 65536
    assert cache == {
        "kind": "kvarn",
        "policy": {},
        "kv_bits": 16,
        "layers": 3,
        "windowed_layers": 1,
        "encoded_layers": 2,
        "bytes_per_token": 4 * 108,
        "times_under_16_bits": 4.74,
        "windowed_bytes_per_request": 3 * 65536,
        "exact_bytes_per_request": exact,
        "tokens_per_gib": 2**30 // 432,
        "memory": 2**30,
        "context": 4096,
        "requests": 2**30 // (4 * 31 * 13824 + 5 * 65536 + exact),
        "evicting": None,
    }
    assert cli.main([*inspect, "--json", "--memory", "0.25", "--context", "1024"]) == 0
    cache = json.loads(capsys.readouterr().out)["cache"]
    assert (cache["memory"], cache["context"]) == (2**28, 1024)
    assert cache["requests"] == 2**28 // (4 * 7 * 13824 + 5 * 65536 + exact)
    assert cli.main([*inspect, "--memory", "0.5", "--context", "300"]) == 0
    text = capsys.readouterr().out
    assert "kvarn, 16 bits where not encoded, 3 layers" in text
    assert "432 bytes per token (4.74 times fewer than 16-bit ones)" in text
    assert "512.0 KiB per request for the first and the newest tokens, which are not encoded" in text
    assert "1 windowed layers, 192.0 KiB per request at most" in text
    assert f"512.0 MiB hold {2**29 // (4 * 13824 + 3 * 65536 + exact)} requests of 300 tokens" in text


def test_inspect_refuses_what_no_request_and_no_memory_is(capsys: Capture, tiny_engine: Path) -> None:
    inspect = ["inspect", str(tiny_engine)]
    for context in ("0", "-1", "1025"):
        message = _fails(capsys, *inspect, "--context", context)
        assert f"--context: got {context}, expected 1 to 1024, the engine's limit" in message
    for memory in ("0", "-2", "nan", "inf"):
        assert "expected a positive number of GiB" in _fails(capsys, *inspect, "--memory", memory)


def test_help_names_every_command(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in cli.COMMANDS)


@pytest.mark.parametrize("name", ["run", "inspect", "bench", "eval"])
def test_every_command_has_help(capsys: Capture, name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert "DIR" in capsys.readouterr().out


def test_errors_go_to_stderr_with_exit_code_2(capsys: Capture, tiny_engine: Path, tmp_path: Path) -> None:
    assert "got no manifest.json" in _fails(capsys, "run", str(tmp_path), "--prompt", "x")
    assert "got no manifest.json" in _fails(capsys, "inspect", str(tmp_path / "nothing"))
    run = ["run", str(tiny_engine), "--prompt", "x"]
    assert "Sampling.top_p: got 3.0" in _fails(capsys, *run, "--top-p", "3")
    assert "Sampling.max_tokens: got 5000" in _fails(capsys, *run, "--max-tokens", "5000")
    assert "no chat template" in _fails(capsys, *run, "--chat")
    assert "prompt: got no tokens" in _fails(capsys, "run", str(tiny_engine), "--prompt", "")
    bench = ["bench", str(tiny_engine)]
    assert "--batch: got '1,x'" in _fails(capsys, *bench, "--batch", "1,x")
    assert "--repeat: got 0" in _fails(capsys, *bench, "--repeat", "0")
    assert "--new-tokens: got 1" in _fails(capsys, *bench, "--new-tokens", "1")
    assert "max_batch: got 99" in _fails(capsys, *bench, "--batch", "99")


def test_a_damaged_engine_is_refused(capsys: Capture, make_engine: Callable[..., Path]) -> None:
    root = make_engine()
    graph = root / "graphs/decoder.onnx"
    data = bytearray(graph.read_bytes())
    data[100] ^= 1
    graph.write_bytes(data)
    assert "content differs" in _fails(capsys, "run", str(root), "--prompt", "x")
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    assert "upgrade enginewright" in _fails(capsys, "inspect", str(root))


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["run"], ["run", "DIR", "--prompt", "x", "--unknown"]])
def test_a_wrong_command_line_exits_with_2(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: enginewright" in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "build", ("needy", "needs more"))
    assert "'no_such_package_anywhere'" in (message := _fails(capsys, "build"))
    assert "pip install 'enginewright[build]'" in message


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_other_ends(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("enginewright.runtime.commands.inspect.run", fail)
    assert cli.main(["inspect", str(tmp_path)]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly(tiny_engine: Path) -> None:
    root = Path(cli.__file__).parents[1]
    code = (
        "import sys, types, importlib.util\n"
        "if importlib.util.find_spec('enginewright') is None:\n"
        "    package = types.ModuleType('enginewright')\n"
        f"    package.__path__ = [{str(root)!r}]\n"
        "    sys.modules['enginewright'] = package\n"
        "from enginewright.runtime.cli import main\n"
        "sys.exit(main())\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", code, "inspect", str(tiny_engine)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
