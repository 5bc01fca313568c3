"""Damaged files of every kind: taken or refused in one line, in little memory, without a hang."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
SCRIPT = Path(__file__).parent / "fuzz.py"


def fuzzed(inputs: int, seed: int) -> dict:
    done = subprocess.run([sys.executable, SCRIPT, "--inputs", str(inputs), "--seed", str(seed)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("inputs, seed", [
    (3200, 0), pytest.param(60_000, 1, marks=pytest.mark.long)])
def test_a_damaged_file_is_taken_or_refused_in_one_line_that_names_it(inputs, seed):
    found = fuzzed(inputs, seed)
    assert found["faults"] == [] and found["inputs"] >= inputs
    assert found["grown_mib"] <= 64              # whatever a number in a file of 200 KB asks for
    assert found["slowest_seconds"] < 5           # of the processor
    for kind, counts in found["counts"].items():             # or the damage is none, or too much
        assert counts["refused"] > 0.3 * sum(counts.values()) and counts["taken"] > 0, kind
