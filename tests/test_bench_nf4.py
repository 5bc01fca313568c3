"""The measuring code: complete and honest in form; the numbers are the machine's."""
import json

import pytest

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
