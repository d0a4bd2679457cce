"""Tests of the GPU benchmark at tiny sizes: calls give finite numbers, baselines agree, everything runs without a clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import pytest

from tests.support.kernels.device import Device

torch = pytest.importorskip("torch", reason="the benchmark's memory is torch's")

from benchmarks.kernels.gpu import __main__ as command  # noqa: E402
from benchmarks.kernels.gpu import baselines, calls  # noqa: E402
from benchmarks.kernels.gpu.baselines import Family  # noqa: E402
from benchmarks.kernels.gpu.comparisons import (  # noqa: E402
    Comparison,
    FlushComparison,
    Sizes,
    Target,
    comparisons,
    groups,
)
from benchmarks.kernels.gpu.measure import launches, run_comparison  # noqa: E402
from benchmarks.kernels.gpu.timing import Bandwidth, CudaTimer, Times  # noqa: E402
from enginewright.plugins.libraries.locate import LibraryError  # noqa: E402

TINY = Sizes(
    query_heads=4,
    kv_heads=2,
    dim=32,
    layers=2,
    batches=(1, 3),
    contexts=(300, 512),
    prefill=150,
    chunk=106,
    tokens=(1, 5),
    hidden=64,
    vocab=300,
    emitting_rows=(1, 3),
    linears=((64, 48), (96, 40)),
    linear_rows=(1, 3),
)


def torch_device(device: Device) -> str:
    return "cuda" if device.name == "cuda" else "cpu"


class OnceTimer:
    """Runs every launch once; the first body takes a millisecond, each further one a millisecond more."""

    def __init__(self, device: str) -> None:
        self.device = device

    def sets(self, bytes: int, most: int = 256) -> int:
        return 2

    def alternate(self, bodies: Sequence[Sequence[Callable[[], object]]]) -> list[Times]:
        for body in bodies:
            for launch in body:
                launch()
        return [Times((1 + i) / 1000, (2 + i) / 1000) for i in range(len(bodies))]


def calls_of(comparison: Comparison | FlushComparison) -> dict[str, Callable[[str], calls.KernelCall]]:
    if isinstance(comparison, FlushComparison):
        return {name: getattr(comparison, name) for name in ("encoding", "plain", "attention")}
    return {op: entry.make for op, entry in comparison.entries.items()}


EVERY = [
    pytest.param(make, id=f"{comparison.group}, {comparison.name}, {op}")
    for comparison in comparisons(TINY)
    for op, make in calls_of(comparison).items()
]


@pytest.mark.parametrize("make", EVERY)
def test_a_call_gives_finite_numbers(make: Callable[[str], calls.KernelCall], device: Device) -> None:
    torch.manual_seed(0)
    call = make(torch_device(device))
    assert call.moved > 0
    launches(device.library, [call], torch_device(device))[0]()
    device.synchronize()
    for output in call.outputs:
        assert torch.isfinite(output.double()).all()
        assert output.dtype is torch.int64 or output.double().abs().max() > 0


@pytest.mark.parametrize("length", [0, 2])
def test_heads_emit_what_the_comparison_says(length: int, device: Device) -> None:
    shape = calls.HeadsShape(hidden=64, vocab=300, k=3, rows=5, length=length)
    call = calls.clp_emit(torch_device(device), shape)
    launches(device.library, [call], torch_device(device))[0]()
    device.synchronize()
    assert call.outputs[1].tolist() == [1 + length] * 5


FAMILIES: list[Callable[[], Family]] = [
    lambda: baselines.attention(TINY.attention(3, 299, 1), compiled=False),
    lambda: baselines.attention(TINY.attention(1, 0, 40), compiled=False),
    lambda: baselines.attention(TINY.attention(1, 100, 30), compiled=False),
]


@pytest.mark.parametrize("make_family", FAMILIES, ids=["decode", "prefill", "chunk"])
def test_baselines_agree(make_family: Callable[[], Family]) -> None:
    """Compares the baselines that a CPU runs; the benchmark itself tries the others."""
    torch.manual_seed(0)
    family = make_family()
    inputs = family.inputs("cpu")
    found = []
    for baseline in family.baselines.values():
        try:
            found.append(baseline(*inputs).float().flatten())
        except RuntimeError:
            continue  # a backend that only a GPU has
    assert len(found) >= 2
    query, key, value = (tensor.float() for tensor in inputs)
    new, total = query.shape[2], key.shape[2]
    mask = torch.ones(new, total, dtype=torch.bool).tril(total - new)
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).flatten()
    for result in found:
        torch.testing.assert_close(result, wanted, atol=5e-3, rtol=5e-3)


MIX = calls.MixShape(query_heads=4, kv_heads=2, dim=32, sources=2, tokens=5)
SPLIT = calls.SplitShape(query_heads=4, kv_heads=2, dim=32, tokens=5)
SAME_INPUTS: list[tuple[Callable[[str], calls.KernelCall], Family]] = [
    (lambda device: calls.depth_mix(device, MIX), baselines.depth_mix(MIX, compiled=False)),
    (lambda device: calls.split_qkv(device, SPLIT), baselines.split_qkv(SPLIT, compiled=False)),
    (lambda device: calls.greedy_sample(device, 3, 300), baselines.greedy_sample(3, 300)),
]


@pytest.mark.parametrize(("make", "family"), SAME_INPUTS, ids=["DepthMix", "SplitQkv", "GreedySample"])
def test_a_call_and_its_baseline_agree(make: Callable[[str], calls.KernelCall], family: Family, device: Device) -> None:
    call = make(torch_device(device))
    launches(device.library, [call], torch_device(device))[0]()
    device.synchronize()
    inputs = call.kept[: len(family.inputs("cpu"))]
    (baseline,) = family.baselines.values()
    wanted = baseline(*inputs)
    for output, expected in zip(call.outputs, wanted if isinstance(wanted, tuple) else [wanted], strict=True):
        torch.testing.assert_close(output.flatten(), expected.flatten(), atol=8e-3, rtol=8e-3)


@pytest.mark.parametrize("group", groups(TINY))
def test_the_command_measures_a_group(group: str, device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    timer = OnceTimer(torch_device(device))
    bandwidth, results = command.measure_all(device.library, timer, TINY, [group], buffer=4096, compiled=False)
    assert bandwidth["copy"] == 2 * 4096 / 1e-3 and bandwidth["read"] == 4096 / 2e-3
    assert results and {result.group for result in results} == {group}
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == [str(result) for result in results]
    json.dumps([asdict(result) for result in results])


def test_ratios_and_shares() -> None:
    """Two calls of 1 and 2 ms and a baseline of 3 ms give the expected lines."""

    def make(device: str) -> calls.KernelCall:
        return calls.KernelCall(structure=None, outputs=(), moved=10**6, kept=())

    class Library:
        def workspace_bytes(self, call: object) -> int:
            return 0

        def start(self, *arguments: object) -> None:
            pass

    targets = (Target(figure="ratio", bound=2.0), Target(figure="copy_share", bound=0.9))
    family = Family(inputs=lambda device: [], baselines={"torch": lambda: 0, "broken": lambda: 1 / 0})
    from benchmarks.kernels.gpu.comparisons import Entry

    comparison = Comparison(
        group="decode",
        name="made up",
        entries={"one": Entry(make=make, targets=targets), "two": Entry(make=make, targets=targets)},
        family=lambda compiled: family,
    )
    one, two = run_comparison(comparison, Library(), OnceTimer("cpu"), Bandwidth(1e9, 2e9), False)
    assert (one.best, two.best, one.baseline_best, one.ratio, two.ratio) == (1000, 2000, 3000, 3, 1.5)
    assert (one.copy_share, one.read_share, two.copy_share) == (1, 0.5, 0.5)
    assert one.targets == {"ratio >= 2": True, "copy share >= 90.0%": True}
    assert list(two.targets.values()) == [False, False]
    assert one.left_out == {"broken": "ZeroDivisionError: division by zero"}
    assert "ratio 1.50" in str(two) and "NOT MET" in str(two) and "NOT MET" not in str(one)


def test_a_run_says_what_it_was(device: Device) -> None:
    about = command.facts(device.library, ["--quick"])
    assert about["command"] == "python -m benchmarks.kernels.gpu --quick"
    assert about["library"] == device.library.version and about["date"][:2] == "20"
    json.dumps(about)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(command, "open_cuda_library", lambda: device.library)
    with pytest.raises(
        LibraryError, match=r"benchmarks.kernels.gpu: got torch .* which sees no GPU, expected one with CUDA"
    ):
        command.main([])


@pytest.mark.cuda
def test_the_timer_times() -> None:
    """A copy of 64 MiB takes longer than one of 1 MiB, at a rate that a GPU can have."""
    small, large = (torch.zeros(size, dtype=torch.uint8, device="cuda") for size in (1 << 20, 1 << 26))
    one, other = CudaTimer(3).alternate([[lambda: small.clone()], [lambda: large.clone()]])
    assert 0 < one.best <= one.median and one.best < other.best
    assert 2 * (1 << 26) / other.best < 1e14
