"""The measuring code: complete and honest in form; the numbers are the machine's."""
import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import CONTEXT

from minipeft.lab import bench_layer, bench_nf4, turns


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:     # two new processes would compile for seconds
        patch.setattr(bench_nf4, "first_use", lambda: {"compiling": 2.0, "cached": 0.5})
        patch.setattr(bench_nf4, "QUICK_SHAPES", ((64, 128),))
        patch.setattr(bench_layer, "QUICK_SHAPE", (64, 128))
        patch.setattr(turns, "multiprocessing", SimpleNamespace(get_context=lambda _: CONTEXT))
        patch.setattr(turns, "sleep", lambda seconds: None)
        patch.setattr(turns, "WARMUPS", 0)
        for name, value in dict(THREADS=(1,), BATCHES=(1, 8), TRAINING_BATCHES=(16,)).items():
            patch.setattr(bench_layer, name, value)
        return bench_nf4.run(out, quick=True), out


def test_a_run_is_written_as_it_is_returned_with_a_picture(measured):
    results, out = measured
    assert json.loads((out / "nf4_cpu.json").read_text(encoding="utf-8")) == results
    pictures = {"nf4_cpu.png", "nf4_cpu_layers.png"}
    assert all((out / picture).stat().st_size > 10_000 for picture in pictures)
    assert {path.name for path in out.iterdir()} == {"nf4_cpu.json", *pictures}


def test_every_case_has_its_contenders_and_the_table_their_ratios(measured):
    results, _ = measured
    assert results["backend"] == "cpu" and results["machine"]["threads"] >= 1
    text = bench_nf4.table(results)
    for case in results["cases"]:
        assert any("copy" in name or "torch" in name for name in case["seconds"])
        for name, seconds in case["seconds"].items():
            ratio = seconds["median"] / case["seconds"]["minipeft"]["median"]
            assert name in text and f"{ratio:.2f}" in text
    operations = {case["operation"] for case in results["cases"]}
    assert {"quantize", "dequantize", "gemv"} <= operations


def test_every_layer_is_timed_both_ways_and_the_table_has_their_ratios(measured):
    results, _ = measured
    found = results["layers"]["cases"]
    made = {tuple(case[key] for key in ("training", "batch", "dtype", "threads")) for case in found}
    assert made == {(*how, dtype, 1) for how in ((False, 1), (False, 8), (True, 16))
                    for dtype in ("float32", "bfloat16")}
    text = bench_layer.table(results["layers"])
    lines = [line for line in text.splitlines() if "64 x 128" in line][:len(found)]
    for case, line in zip(found, lines, strict=True):
        assert f"{1e3 * case['seconds']['minipeft']['median']:.3f}" in line
        assert (case["ratio"] is None) == (bench_layer.Linear4bit is None)
        if case["ratio"]:
            median, low, high = (case["ratio"][key] for key in ("median", "low", "high"))
            assert line.endswith(f" {median:.2f} ({low:.2f} to {high:.2f})")
            assert low <= median <= high


def test_the_errors_are_those_of_float32_and_of_bfloat16(measured):
    """Each rounding to bfloat16 is 2^-9 of a value at most, to float32 2^-24."""
    relative = measured[0]["layers"]["errors"]["relative"]
    assert relative["float32"]["minipeft"] < 2**-21 < 2**-12 < relative["bfloat16"]["minipeft"]
    assert relative["bfloat16"]["minipeft"] < 2**-8
    pytest.importorskip("bitsandbytes")
    assert relative["float32"]["bitsandbytes, train mode"] < 2**-21
    assert relative["float32"]["bitsandbytes, eval mode"] < 2**-7


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", bench_layer.DTYPES)
def test_the_layers_beside_each_other_give_the_same(training, dtype):
    """But for bfloat16's roundings of x, W and y, 2^-9 each; the dense W is not in 4 bits."""
    pytest.importorskip("bitsandbytes")
    case = bench_layer.LayerCase(training, (64, 128), dtype, 8, 1, "cpu")
    found = {}
    for name, build in case.builds().items():
        call = build()
        y = call()
        found[name] = (inspect.getclosurevars(call).nonlocals["x"].grad if training else y).float()
    exact, dense = found.pop("minipeft"), found.pop("torch, dense")
    assert len(found) == 1 if training and dtype == torch.float32 else 2
    assert exact.shape == ((8, 128) if training else (8, 64))
    for name, theirs in found.items():
        assert (exact - theirs).norm() < 2**-7 * exact.norm(), name
    assert 0.02 < (exact - dense).norm() / dense.norm() < 0.2                  # NF4's own error


def test_what_is_timed_beside_each_other_gives_the_same():
    """Both multiply one matrix by one vector; the peer's fastest way rounds to bfloat16, 2^-9."""
    pytest.importorskip("bitsandbytes")
    case = bench_nf4.Case("gemv", (64, 128), torch.float32, False, "cpu", 3 * 64 * 128 // 2, 1)
    y = {name: build()() for name, build in bench_nf4.multipliers(case).items()}
    exact, dense = y["minipeft"], y["torch float32 F.linear"]
    slow, fast = (y[f"bitsandbytes, {how}"] for how in (
        "dequantize + F.linear", "Linear4bit in eval mode"))
    assert torch.allclose(exact, slow, rtol=0, atol=1e-5 * dense.norm())       # order of the sums
    assert torch.allclose(exact, fast[0], rtol=0, atol=2**-8 * dense.norm())
    assert 0.02 < (exact - dense).norm() / dense.norm() < 0.2                  # NF4's own error


def test_each_library_is_timed_in_a_process_of_its_own():
    kernel = bench_nf4.Case("gemv", (64, 64), torch.float32, False, "cpu", 1, 1)
    layer = bench_layer.LayerCase(False, (64, 64), torch.float32, 1, 1, "cpu")
    names = {name for builds in [*bench_nf4.OPERATIONS.values(), bench_layer.LayerCase.builds]
             for name in builds(layer if builds is bench_layer.LayerCase.builds else kernel)}
    assert {name: turns.side_of(name) for name in names if "bits" not in name} == {
        "minipeft": "minipeft", "minipeft, new output": "minipeft", "copy": "torch",
        "torch float32 F.linear": "torch", "torch bfloat16 mv": "torch", "torch, dense": "torch"}
    assert {turns.side_of(name) for name in names if "bits" in name} <= {"bitsandbytes"}


class Pipe:
    """A process that answers each question with how many it has had so far."""

    def __init__(self, asked: list):
        self.asked = asked

    def send(self, message):
        self.asked.append(message)

    def recv(self) -> float:
        return float(len(self.asked))


def test_each_round_begins_with_the_next_contender_and_the_first_two_do_not_count(monkeypatch):
    monkeypatch.setattr(turns, "sleep", lambda seconds: None)
    case = SimpleNamespace(threads=1, builds=lambda: dict.fromkeys(["minipeft", "a", "b"]))
    asked = []
    seconds = turns.in_turn(case, 3, dict.fromkeys(("minipeft", "bitsandbytes", "torch"),
                                                   Pipe(asked)))
    assert asked[:3] == [(case, "minipeft"), (case, "a"), (case, "b")]
    rounds = "minipeft a b, a b minipeft, b minipeft a, minipeft a b, a b minipeft"
    assert asked[3:-3] == rounds.replace(",", "").split()
    # 3 were built, 6 asked in the rounds that warm up
    assert seconds == {"minipeft": [11.0, 13.0, 18.0], "a": [12.0, 14.0, 16.0],
                       "b": [10.0, 15.0, 17.0]}


def test_a_short_call_is_repeated_and_a_long_one_is_not(monkeypatch):
    taken = iter([0.09, 0.001, 0.003, 0.002])             # waking the threads took a tick
    clock = iter([0.0, 0.004, 0.01, 0.03])
    monkeypatch.setattr(turns, "timed", lambda call: next(taken))
    monkeypatch.setattr(turns, "perf_counter", lambda: next(clock))
    assert turns.turn(None) == 0.002            # of the three after the first
    monkeypatch.setattr(turns, "timed", lambda call: 0.5)
    monkeypatch.setattr(turns, "perf_counter", lambda: 0.0)
    assert turns.turn(None) == 0.5
