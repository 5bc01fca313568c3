"""The benchmark of a streamed load: what is stored, and a run of it."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "streamed_load.py"


def check(found: dict) -> None:
    """Above the model, 4-bit loading takes about a layer; the other way takes the model in 16
    bits, of which the linears are 3.9 times as large as in 4."""
    layer, streamed, whole = found["layer_bytes"], *found["ways"].values()
    assert streamed["model_bytes"] == whole["model_bytes"]
    assert streamed["peak_bytes"] - streamed["model_bytes"] < 1.5 * layer
    assert whole["peak_bytes"] >= found["file_bytes"]
    assert max(size for _, size in streamed["samples"]) == streamed["peak_bytes"]


def test_the_stored_peak_is_the_model_and_about_a_layer():
    folder = SCRIPT.parent / "results" / "streamed_load"
    found = json.loads((folder / "streamed_load.json").read_text())
    check(found)
    # by hand: 24 layers of q, k, v, o, gate, up, down in NF4 (0.51587 bytes), the rest in bfloat16
    linears = 24 * (2 * 896 * 896 + 2 * 128 * 896 + 3 * 896 * 4864)
    assert found["parameters"] == 494_032_768
    assert found["ways"]["streamed"]["model_bytes"] == pytest.approx(
        0.51587 * linears + 2 * (found["parameters"] - linears), rel=1e-4)
    assert (folder / "streamed_load.png").stat().st_size > 10_000


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_run_of_it_says_the_same(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--layers", "4", "--out", tmp_path],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    check(json.loads((tmp_path / "streamed_load.json").read_text()))
