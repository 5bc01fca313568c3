"""The measuring code: complete and honest in form; the numbers are the machine's."""
import json

import pytest
import torch

from minipeft.lab import bench_nf4


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:     # two new processes would compile for seconds
        patch.setattr(bench_nf4, "first_use", lambda: {"compiling": 2.0, "cached": 0.5})
        patch.setattr(bench_nf4, "QUICK_SHAPES", ((64, 128),))
        return bench_nf4.run(out, quick=True), out


def test_a_run_is_written_as_it_is_returned_with_a_picture(measured):
    results, out = measured
    assert json.loads((out / "nf4_cpu.json").read_text(encoding="utf-8")) == results
    assert (out / "nf4_cpu.png").stat().st_size > 10_000
    assert {path.name for path in out.iterdir()} == {"nf4_cpu.json", "nf4_cpu.png"}


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


def test_what_is_timed_beside_each_other_gives_the_same():
    """Both multiply one matrix by one vector; the peer's fastest way rounds to bfloat16, 2^-9."""
    pytest.importorskip("bitsandbytes")
    case = bench_nf4.Case("gemv", (64, 128), torch.float32, False, "cpu", 3 * 64 * 128 // 2)
    y = {name: build()() for name, build in bench_nf4.multipliers(case).items()}
    exact, dense = y["minipeft"], y["torch float32 F.linear"]
    slow, fast = (y[f"bitsandbytes, {how}"] for how in (
        "dequantize + F.linear", "Linear4bit in eval mode"))
    assert torch.allclose(exact, slow, rtol=0, atol=1e-5 * dense.norm())       # order of the sums
    assert torch.allclose(exact, fast[0], rtol=0, atol=2**-8 * dense.norm())
    assert 0.02 < (exact - dense).norm() / dense.norm() < 0.2                  # NF4's own error


def test_each_library_is_timed_in_a_process_of_its_own():
    names = {name for operation in bench_nf4.OPERATIONS.values() for name in operation(
        bench_nf4.Case("gemv", (64, 64), torch.float32, False, "cpu", 1))}
    assert {name: bench_nf4.side_of(name) for name in names if "bits" not in name} == {
        "minipeft": "minipeft", "minipeft, new output": "minipeft", "copy": "torch",
        "torch float32 F.linear": "torch", "torch bfloat16 mv": "torch"}
