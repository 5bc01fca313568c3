"""Every parity test compares with `compare`, which also collects the rows of benchmarks/parity.md.

    MINIPEFT_WRITE_PARITY=1 python -m pytest -q tests/parity        writes the table
"""
import importlib.metadata
import os
from pathlib import Path

import pytest
import torch

TABLE = Path(__file__).parents[2] / "benchmarks" / "parity.md"
PEERS = ("torch", "transformers", "peft", "bitsandbytes")
ROWS = {}       # ("of: what", against): [comparisons, largest difference, largest allowed]


@pytest.fixture
def compare():
    """compare("of: what", against, ours, theirs, atol) fails beyond atol; it keeps how far off."""
    def check(what, against, ours, theirs, atol):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, check_dtype=False)
        difference = (ours.double() - theirs.double()).abs().max().item()
        row = ROWS.setdefault((what, against), [0, 0.0, 0.0])
        row[:] = row[0] + 1, max(row[1], difference), max(row[2], atol)
    return check


def pytest_configure(config):     # transformers' own, about itself
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing`:FutureWarning")


def pytest_sessionfinish(session, exitstatus):
    if os.environ.get("MINIPEFT_WRITE_PARITY") == "1" and exitstatus == 0:
        TABLE.write_text(markdown(), encoding="utf-8")


def markdown() -> str:
    peers = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PEERS)
    lines = ["# Compared with the real libraries", "",
             "Written by `MINIPEFT_WRITE_PARITY=1 python -m pytest -q tests/parity`; do not edit.",
             f"With {peers}, on the CPU, random small models.", "",
             "The largest difference of any element over all comparisons of a row; 0 means bitwise",
             "equal. What is allowed has its reason in the test.", "",
             "| of | what | against | comparisons | largest difference | allowed |",
             "|---|---|---|---:|---:|---:|"]
    for (what, against), (n, difference, allowed) in sorted(ROWS.items()):
        cells = (*what.split(": "), against, n, f"{difference:.2g}", f"{allowed:.2g}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
