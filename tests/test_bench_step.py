"""The training step beside HF PEFT's: what is computed from the runs, and the stored reference."""
import json
from pathlib import Path

import pytest

from minipeft.lab import bench_step

STORED = Path(__file__).parent.parent / "benchmarks" / "results" / "step.json"


def made_up_run(side: str, seconds: list[float], peak: float | None, losses: list[float],
                speed: float) -> dict:
    return {"side": side, "dtype": "fp32", "four_bit": False, "losses": losses, "peak_bytes": peak,
            "seconds": [99.0, *seconds],                            # the first step warms up
            "decoded": [], "decode_tokens_per_second": [1.0, speed, 50.0]}


def test_ratios_are_medians_over_the_turns_of_ours_over_theirs_without_the_first():
    runs = [made_up_run("minipeft", [2.0, 6.0, 3.0], 300, [1.0, 0.5], 12.0),     # 1/2, 1/4, 3/4
            made_up_run("HF PEFT", [4.0, 24.0, 4.0], 400, [1.0, 0.4], 10.0)]
    (row,) = bench_step.ratios({"runs": runs})
    assert (row["time_ratio"], row["memory_ratio"]) == (0.5, 0.75)
    assert (row["time_ratio_low"], row["time_ratio_high"]) == (0.375, 0.625)
    assert row["seconds"] == [3.0, 4.0]
    assert row["decode"] == [12.0, 10.0] and row["method"] == "LoRA"
    assert row["largest_loss_difference"] == pytest.approx(0.1)


def test_where_the_system_tells_no_peak_the_table_says_so():
    runs = [made_up_run(side, [1.0, 1.0], None, [1.0], 9.0) for side in bench_step.SIDES]
    text = bench_step.table({"runs": runs, "rows": 8, "rank": 8, "threads": 2})
    assert text.splitlines()[-1].split()[:9] == ["LoRA", "fp32", "1.00", "1.00", "1.00",
                                                 "(1.00-1.00)", "-", "-", "-"]


def test_a_process_that_ends_says_why(tmp_path):
    with pytest.raises(OSError, match=r"'minipeft', 'fp32', False\) failed:(.|\n)*"
                                      r"fp32.safetensors"):      # which is not in this folder
        bench_step.measure(str(tmp_path), "fp32", False, range(1))


def test_the_stored_runs_lost_the_same_and_decoded_the_same():
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    lora = next(row for row in bench_step.ratios(stored)
                if (row["method"], row["dtype"]) == ("LoRA", "fp32"))
    assert lora["largest_loss_difference"] < 1e-4        # float32, ten AdamW steps apart
    ours, theirs = (run["decoded"] for run in stored["runs"]
                    if (run["dtype"], run["four_bit"]) == ("fp32", False))
    assert ours == theirs and len(ours) == bench_step.NEW_TOKENS
