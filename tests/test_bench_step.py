"""The training step beside HF PEFT's: what is computed from the runs, and the stored reference."""
import json
from pathlib import Path

import pytest

from minipeft import bench_step

STORED = Path(__file__).parent.parent / "benchmarks" / "results" / "step.json"


def made_up_run(side: str, seconds: float, peak: float, losses: list[float], speed: float) -> dict:
    return {"side": side, "dtype": "fp32", "four_bit": False, "losses": losses, "peak_bytes": peak,
            "seconds": [99.0, seconds, 3 * seconds, seconds],       # the first step warms up
            "decoded": [], "decode_tokens_per_second": [1.0, speed, 50.0]}


def test_ratios_are_medians_of_ours_over_theirs_without_the_first_step():
    runs = [made_up_run("minipeft", 2.0, 300, [1.0, 0.5], 12.0),
            made_up_run("HF PEFT", 4.0, 400, [1.0, 0.4], 10.0)]
    (row,) = bench_step.ratios({"runs": runs})
    assert (row["time_ratio"], row["memory_ratio"]) == (0.5, 0.75)
    assert row["decode"] == [12.0, 10.0] and row["method"] == "LoRA"
    assert row["largest_loss_difference"] == pytest.approx(0.1)


def test_where_the_system_tells_no_peak_the_table_says_so():
    runs = [made_up_run(side, 1.0, None, [1.0], 9.0) for side in bench_step.SIDES]
    text = bench_step.table({"runs": runs, "rows": 8, "rank": 8, "threads": 2})
    assert text.splitlines()[-1].split()[:7] == ["LoRA", "fp32", "1.00", "1.00", "1.00", "0", "0"]


def test_the_stored_runs_lost_the_same_and_decoded_the_same():
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    lora = next(row for row in bench_step.ratios(stored)
                if (row["method"], row["dtype"]) == ("LoRA", "fp32"))
    assert lora["largest_loss_difference"] < 1e-4        # float32, ten AdamW steps apart
    ours, theirs = (run["decoded"] for run in stored["runs"]
                    if (run["dtype"], run["four_bit"]) == ("fp32", False))
    assert ours == theirs and len(ours) == bench_step.NEW_TOKENS
