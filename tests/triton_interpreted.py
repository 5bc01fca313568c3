"""The Triton kernels on a CPU; test_nf4_gpu.py runs this file where TRITON_INTERPRET=1 is set.

A process of its own, because triton reads that variable when it is first imported.
"""
import pytest
import torch

from minipeft.nf4 import FP4_CODE, NF4_CODE, dequantize_nf4, gemv, quantize_nf4

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, blocksize", [((33, 7), 32), ((280, 64), 64), ((5000,), 4096)])
def test_a_kernel_gives_the_bytes_of_the_specification(shape, blocksize, dtype, nested):
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * .02).to(dtype)
    weight.view(-1)[:64] = 0
    arguments = dict(blocksize=blocksize, compress_statistics=nested)
    packed, state = quantize_nf4(weight, backend="triton", **arguments)
    expected, expected_state = quantize_nf4(weight, backend="reference", **arguments)
    assert torch.equal(packed, expected) and torch.equal(state.absmax, expected_state.absmax)
    for out in DTYPES:
        assert torch.equal(dequantize_nf4(packed, state, out, backend="triton"),
                           dequantize_nf4(packed, state, out, backend="reference"))


@pytest.mark.parametrize("dtype, nested, code", [
    (torch.float32, True, NF4_CODE), (torch.bfloat16, False, FP4_CODE),
    (torch.float16, True, FP4_CODE)])
def test_gemv_is_the_product_with_the_dequantized_weight(dtype, nested, code):
    random = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 192, generator=random), torch.randn(192, generator=random).to(dtype)
    packed, state = quantize_nf4(weight, compress_statistics=nested, code=code)
    y = gemv(packed, state, x, backend="triton")
    exact = dequantize_nf4(packed, state, torch.float32).double() @ x.double()
    # the last rounding to dtype, and float32 sums of 192 terms of size 1 in any order
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=2e-5)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 2 blocks"):
        quantize_nf4(torch.tensor([0.0] * 64 + [1.0, float("nan")]), backend="triton")
