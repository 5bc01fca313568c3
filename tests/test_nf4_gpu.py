"""The Triton kernels, in a process where Triton interprets them on the CPU."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minipeft.nf4 import backend_for, dequantize_nf4, quantize_nf4

CASES = Path(__file__).with_name("triton_interpreted.py")


def test_the_kernels_pass_their_cases_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is the optional extra minipeft[gpu]")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p",
                          "no:cacheprovider", str(CASES)], capture_output=True, text=True,
                         cwd=CASES.parents[1], env=os.environ | {"TRITON_INTERPRET": "1"})
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert "passed" in run.stdout and "skipped" not in run.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("nested", [False, True])
def test_on_a_gpu_the_kernels_give_the_bytes_of_the_specification(nested):
    weight = torch.randn(1024, 4096, device="cuda").bfloat16()
    assert backend_for("cuda") == "triton"
    packed, state = quantize_nf4(weight, compress_statistics=nested)
    expected, expected_state = quantize_nf4(weight, compress_statistics=nested, backend="reference")
    assert torch.equal(packed, expected) and torch.equal(state.absmax, expected_state.absmax)
    assert torch.equal(dequantize_nf4(packed, state),
                       dequantize_nf4(packed, state, backend="reference"))
