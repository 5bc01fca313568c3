"""x W^T and its gradient from 4-bit codes: every shape, in little memory, on every processor."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.nf4 import cpu, dequantize_nf4, quantize_nf4
from minipeft.nf4.dispatch import linear_nf4, linear_nf4_backward

ROOT = Path(__file__).parents[1]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
# Of sum |x_i w_i|. Float32: a few hundred terms, each partial sum rounded by at most 2^-24 of
# itself, mostly in 16 lanes; 16 bits also round the weight or its code: a term by at most eps / 2
SUMS = {torch.float32: 1e-6, torch.float16: 2**-11 + 1e-6, torch.float64: 1e-14,
        torch.bfloat16: 2**-8 + 1e-6}


@st.composite
def products(draw) -> tuple:
    """Codes with their state, and rows to multiply; widths that are whole blocks and others."""
    n_out = draw(st.integers(1, 70))
    n_in = draw(st.one_of(st.integers(1, 300), st.integers(1, 20).map(lambda n: 32 * n)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.randn(n_out, n_in, generator=random)
    weight *= 10 ** torch.empty(n_out, 1).uniform_(-3, 1, generator=random)    # each row its scale
    packed, state = quantize_nf4(weight, draw(st.sampled_from((32, 64, 128, 1024))),
                                 compress_statistics=draw(st.booleans()))
    leading = draw(st.sampled_from([(), (1,), (2,), (3, 2), (8,), (2, 17), (0,), (70,)]))
    dtype = draw(st.sampled_from(list(SUMS)))
    x, grad_y = (torch.randn(*leading, n, generator=random).to(dtype) for n in (n_in, n_out))
    if draw(st.booleans()) and leading:      # not contiguous
        x, grad_y = (torch.stack([t, t], dim=-1)[..., 0] for t in (x, grad_y))
    return packed, state, x, grad_y


def check(ours: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """x @ weight in float64 against ours; the last rounding is to x's dtype."""
    expected = x.double() @ weight.double()
    bound = SUMS[x.dtype] * (x.double().abs() @ weight.double().abs())
    if x.dtype.itemsize == 2:
        smallest = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
        bound += torch.finfo(x.dtype).eps / 2 * (expected.abs() + bound) + smallest
    assert ours.dtype == x.dtype and ours.shape == expected.shape
    assert ((ours.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("backend, flags", [
    ("reference", {}), ("cpu", {}), ("cpu", dict(BFLOAT16=False)),
    ("cpu", dict(AVX512=False, BFLOAT16=False, WIDE=()))])
@PROPERTY
@given(products(), st.sampled_from([2**21, 640]))
def test_products_are_those_of_the_dequantized_weight(backend, flags, given, tile):
    packed, state, x, grad_y = given
    weight = dequantize_nf4(packed, state, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (flags | dict(TILE=tile)).items():
            patch.setattr(cpu, name, value)
        check(linear_nf4(packed, state, x, backend), x, weight.T)
        check(linear_nf4_backward(packed, state, grad_y, backend), grad_y, weight)


@pytest.mark.parametrize("batch", [1, 9])
def test_two_threads_share_the_rows_of_w_without_gaps(batch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "WEIGHTS_A_THREAD", 2**10)
            packed, state = quantize_nf4(torch.randn(203, 640))
            x, weight = torch.randn(batch, 640), dequantize_nf4(packed, state)
            check(linear_nf4(packed, state, x), x, weight.T)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("flags", [{}, dict(BFLOAT16=False),
                                   dict(AVX512=False, BFLOAT16=False, WIDE=())])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", list(SUMS))
def test_what_is_no_number_and_what_is_too_large_stays_so(dtype, batch, flags, monkeypatch):
    for name, value in flags.items():
        monkeypatch.setattr(cpu, name, value)
    packed, state = quantize_nf4(torch.ones(9, 128))
    x = torch.ones(batch, 128, dtype=dtype)
    x[-1, 5] = float("nan")
    y = linear_nf4(packed, state, x)
    assert y[-1].isnan().all() and y[:-1].isfinite().all()
    x[-1, 5] = torch.finfo(dtype).max                 # and the sum of two is infinity
    x[-1, 6] = x[-1, 5]
    assert linear_nf4(packed, state, x)[-1].isinf().all()
    assert linear_nf4(packed, state, x)[:-1].isfinite().all()


@pytest.mark.parametrize("message, x", [
    ("(..., 96), on cpu; got torch.float32, (2, 97), on cpu", torch.randn(2, 97)),
    ("(..., 96), on cpu; got torch.int64, (96,), on cpu", torch.ones(96, dtype=torch.int64)),
    ("(..., 96), on cpu; got torch.float32, (2, 96), on meta", torch.empty(2, 96, device="meta")),
])
def test_rows_that_do_not_fit_are_refused(message, x):
    packed, state = quantize_nf4(torch.randn(96, 96))
    with pytest.raises(ValueError, match=re.escape("x must be floating point, " + message)):
        linear_nf4(packed, state, x)
    with pytest.raises(ValueError, match=re.escape("grad_y must be floating point, " + message)):
        linear_nf4_backward(packed, state, x)


RUN = """
import re, torch
from pathlib import Path
from minipeft.nf4 import NF4Linear, cpu, dequantize_nf4, quantize_nf4
from minipeft.nf4.dispatch import linear_nf4

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

for n in (128, 4096):
    layer = NF4Linear(n, n, bias=False)     # its codes are zeros: there never was a W
    for dtype in (torch.bfloat16, torch.float32):
        Path("/proc/self/clear_refs").write_text("5")       # the peak so far is forgotten
        before = kib("VmRSS")
        for batch in (8, 64):
            x = torch.ones(batch, n, dtype=dtype, requires_grad=True)
            layer(x).sum().backward()
        print(kib("VmHWM") - before)
torch.manual_seed(0)
packed, state = quantize_nf4(torch.randn(96, 320))
for dtype in (torch.float32, torch.bfloat16):
    x = torch.randn(8, 320).to(dtype)
    exact = x.double() @ dequantize_nf4(packed, state, backend="reference").double().T
    print(float((linear_nf4(packed, state, x) - exact).norm() / exact.norm()))
print(cpu.AVX512)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(),
                    reason="needs Linux, which says how much memory a process had at most")
@pytest.mark.parametrize("capability", [
    "", "default", pytest.param("avx2", marks=pytest.mark.long)])
def test_nothing_of_the_weights_size_is_allocated_on_any_processor(capability):
    """The peak of a process, in which torch's, numpy's and Numba's memory all count."""
    asked = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    _, _, kib_bfloat16, kib, error, error_bfloat16, avx512 = subprocess.run(
        [sys.executable, "-c", RUN], cwd=ROOT, check=True, text=True, capture_output=True,
        env=os.environ | asked).stdout.split()
    # In float32 a tile of 8 MiB, once for the forward, once for the backward and as the product
    # packs it, and x, y and their gradients, 1 MiB each; W would be 64 MiB. In bfloat16 all is half
    assert int(kib) < 40 * 2**10 and int(kib_bfloat16) < 20 * 2**10
    assert float(error) < 1e-6 and float(error_bfloat16) < 2**-8    # y's last rounding: 2^-9
    assert avx512 == "False" or not capability
