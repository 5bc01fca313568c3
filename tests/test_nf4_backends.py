"""Every backend against the specification, for any input; and bad input."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.nf4 import (FP4_CODE, INT4_CODE, NF4_CODE, QuantState, backend_for, dequantize_nf4,
                          gemv, quantize_nf4)
from minipeft.nf4.reference import midpoints

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FAST = ["cpu"]       # the Triton kernels have test_nf4_gpu.py
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def weights(draw) -> torch.Tensor:
    """Any shape and dtype; scales down to denormals; outliers and blocks of zeros."""
    shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.randn(shape, generator=random) * 10.0 ** draw(st.integers(-45, 4))
    if draw(st.booleans()):
        weight.view(-1)[torch.randint(weight.numel(), (1,), generator=random)] *= 1000
    if draw(st.booleans()):
        weight.view(-1)[:draw(st.integers(0, 200))] = 0
    weight = weight.to(draw(st.sampled_from(DTYPES)))
    return weight.nan_to_num(posinf=60000, neginf=-60000)       # float16 overflowed


@pytest.mark.parametrize("backend", FAST)
@PROPERTY
@given(weights(), st.sampled_from(BLOCKSIZES), st.booleans(), st.sampled_from(DTYPES),
       st.sampled_from([NF4_CODE, INT4_CODE, FP4_CODE]))
def test_a_backend_gives_the_bytes_of_the_specification(backend, weight, blocksize, nested, dtype,
                                                        code):
    arguments = dict(blocksize=blocksize, compress_statistics=nested, code=code)
    packed, state = quantize_nf4(weight, backend=backend, **arguments)
    expected, expected_state = quantize_nf4(weight, backend="reference", **arguments)
    assert torch.equal(packed, expected)
    assert torch.equal(state.absmax, expected_state.absmax)
    ours = dequantize_nf4(packed, state, dtype, backend=backend)
    reference = dequantize_nf4(packed, state, dtype, backend="reference")
    assert ours.shape == weight.shape and ours.dtype == dtype
    assert torch.equal(ours.view(torch.uint8 if ours.dim() else dtype),
                       reference.view(torch.uint8 if ours.dim() else dtype))      # -0.0 is not 0.0


@pytest.mark.parametrize("dtype, n_dropped", [(torch.bfloat16, 16), (torch.float16, 13)])
def test_rounding_to_16_bits_is_to_nearest_with_ties_to_even(dtype, n_dropped):
    """absmax = v and code 1 make the weight v: every exponent and sign, around and on the ties."""
    kept = torch.arange(0, 2**(32 - n_dropped), 37, dtype=torch.int64) << n_dropped
    half = 2**(n_dropped - 1)
    bits = torch.cat([kept, kept + half - 1, kept + half, kept + half + 1])
    values = (bits - (bits >> 31 << 32)).int().view(torch.float32)
    edge = torch.tensor([65504.0, 65519.996, 65520.0])  # float16's largest, and where inf begins
    values = torch.cat([values, edge, -edge])
    values = values[values.isfinite() & (values.abs() >= 2**-126)]     # denormals may be flushed
    state = QuantState(values, (len(values), 32), NF4_CODE, 32, "nf4", torch.float32)
    packed = torch.full((len(values) * 16, 1), 0xFF, dtype=torch.uint8)
    out = dequantize_nf4(packed, state, dtype)
    expected = values[:, None].to(dtype).expand(-1, 32)
    assert torch.equal(out.view(torch.int16), expected.contiguous().view(torch.int16))


@PROPERTY
@given(weights(), st.sampled_from(BLOCKSIZES))
def test_an_error_is_at_most_half_a_step_of_the_block(weight, blocksize):
    packed, state = quantize_nf4(weight, blocksize)
    error = (dequantize_nf4(packed, state, torch.float32) - weight.float()).abs().flatten()
    absmax = state.absmax.repeat_interleave(blocksize)[:weight.numel()]
    half_step = (NF4_CODE[1:] - NF4_CODE[:-1]).max() / 2
    normal = absmax > 1e-37     # below it, absmax or its product with a code may be flushed to zero
    # 1e-6: a few float32 roundings
    assert (error <= half_step * absmax * (1 + 1e-6))[normal].all()


@PROPERTY
@given(weights(), st.sampled_from(BLOCKSIZES))
def test_quantizing_a_dequantized_tensor_changes_nothing(weight, blocksize):
    packed, state = quantize_nf4(weight, blocksize)
    rebuilt = dequantize_nf4(packed, state, torch.float32)
    again, again_state = quantize_nf4(rebuilt, blocksize)
    normal = (state.absmax > 1e-36).all()       # code * absmax must not become a denormal
    ends = codes_reach_an_end(packed, state)
    if normal and ends:
        assert torch.equal(again, packed) and torch.equal(again_state.absmax, state.absmax)


def codes_reach_an_end(packed, state) -> bool:
    """absmax itself has code 0 or 15: always so, but for x (1 / absmax) rounded below 1."""
    values = dequantize_nf4(packed, state, torch.float32).flatten()
    blocks = torch.nn.functional.pad(values, (0, -values.numel() % state.blocksize))
    return torch.equal(blocks.view(-1, state.blocksize).abs().amax(1), state.absmax)


@PROPERTY
@given(st.integers(0, 2**32), st.sampled_from(BLOCKSIZES))
def test_within_a_block_the_order_of_weights_is_kept(seed, blocksize):
    weight = torch.randn(blocksize, generator=torch.Generator().manual_seed(seed)).sort().values
    rebuilt = dequantize_nf4(*quantize_nf4(weight, blocksize))
    assert (rebuilt[1:] >= rebuilt[:-1]).all()


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_zeros_stay_zeros_also_where_denormals_are_flushed(backend, flush):
    torch.set_flush_denormal(flush)
    try:
        packed, state = quantize_nf4(torch.zeros(4, 64), backend=backend)
        assert (packed == 0x77).all() and (state.absmax == 0).all()
        assert (dequantize_nf4(packed, state, backend=backend) == 0).all()
    finally:
        torch.set_flush_denormal(True)      # as conftest.py sets it


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_denormal_blocks_are_divided_by_1e_38_as_in_bitsandbytes(backend):
    torch.set_flush_denormal(False)
    try:
        weight = torch.zeros(64)
        weight[:3] = torch.tensor([5e-39, -2e-39, 3e-40])       # .5, -.2 and .03 after the division
        packed, state = quantize_nf4(weight, backend=backend)
        assert packed.view(-1)[:2].tolist() == [0xC5, 0x77] and state.absmax == weight[0]
    finally:
        torch.set_flush_denormal(True)      # as conftest.py sets it


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_the_blocks_without_gaps(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weight = torch.randn(1500, 512, generator=torch.Generator().manual_seed(0))
        packed, state = quantize_nf4(weight)
        assert torch.equal(packed, quantize_nf4(weight, backend="reference")[0])
        assert torch.equal(dequantize_nf4(packed, state),
                           dequantize_nf4(packed, state, backend="reference"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_gemv_is_the_product_with_the_dequantized_weight(backend, dtype, nested):
    random = torch.Generator().manual_seed(0)
    weight, x = torch.randn(96, 256, generator=random), torch.randn(256, generator=random).to(dtype)
    packed, state = quantize_nf4(weight, compress_statistics=nested)
    y = gemv(packed, state, x, backend=backend)
    exact = dequantize_nf4(packed, state, torch.float32).double() @ x.double()
    assert y.dtype == dtype and y.shape == (96,)
    # the last rounding to dtype, and float32 sums of 256 terms of size 1 in any order; in 16 bits
    # the weight or its code is rounded too, a random walk of 256 steps of eps / 2 of a term at most
    atol = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps / 2 * 3 * 256**.5
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=atol)


def test_an_output_buffer_is_written_and_returned():
    packed, state = quantize_nf4(torch.randn(16, 64))
    out = torch.empty(16, 64, dtype=torch.bfloat16)
    assert dequantize_nf4(packed, state, out=out) is out
    assert torch.equal(out, dequantize_nf4(packed, state, torch.bfloat16))


def test_a_strided_weight_is_read_in_row_major_order():
    weight = torch.randn(64, 128).T
    assert torch.equal(quantize_nf4(weight)[0], quantize_nf4(weight.contiguous())[0])


def test_the_backend_for_a_device_is_named():
    assert backend_for("cpu") == "cpu" and backend_for("meta") == "reference"


@pytest.mark.parametrize("error, message, arguments", [
    (TypeError, "torch.int64", dict(weight=torch.arange(64))),
    (TypeError, "torch.float64", dict(weight=torch.randn(64).double())),
    (TypeError, "list", dict(weight=[1.0])),
    (ValueError, "1 of 2 blocks", dict(weight=torch.tensor([0.0] * 64 + [float("nan")]))),
    (ValueError, "1 of 1 blocks", dict(weight=torch.tensor([0.0, float("-inf")]))),
    (ValueError, "empty", dict(weight=torch.empty(0, 64))),
    (ValueError, "meta device", dict(weight=torch.empty(64, device="meta"))),
    (ValueError, "got 48", dict(blocksize=48)),
    (ValueError, "got 8192", dict(blocksize=8192)),
    (ValueError, "'gpu'", dict(backend="gpu")),
    (ValueError, "'fast'", dict(nested_search="fast")),
    (ValueError, "sorted", dict(code=NF4_CODE.flip(0))),
    (ValueError, "16 values", dict(code=torch.zeros(8))),
    (ValueError, "overflows", dict(weight=torch.full((128,), 3e38), compress_statistics=True)),
])
def test_quantize_refuses_what_it_cannot_do(error, message, arguments):
    with pytest.raises(error, match=message):
        quantize_nf4(**{"weight": torch.randn(64), **arguments})


def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(ValueError, match="triton.*cannot run.*(pip install|TRITON_INTERPRET)"):
        quantize_nf4(torch.randn(64), backend="triton")


@pytest.mark.parametrize("error, message, change", [
    (ValueError, "out must be", dict(out=torch.empty(64, 4))),
    (ValueError, "out must be", dict(out=torch.empty(64, 4).T)),
    (ValueError, "out must be", dict(out=torch.empty(4, 64).half(), dtype=torch.float32)),
    (TypeError, "float64", dict(dtype=torch.float64)),
    (ValueError, "128 contiguous uint8", dict(packed=torch.zeros(127, 1, dtype=torch.uint8))),
    (ValueError, "128 contiguous uint8", dict(packed=torch.zeros(128, 1))),
    (ValueError, "cuda", dict(backend="cuda")),
])
def test_dequantize_refuses_what_does_not_fit(error, message, change):
    packed, state = quantize_nf4(torch.randn(4, 64))
    with pytest.raises(error, match=message):
        dequantize_nf4(**{"packed": packed, "state": state, **change})


@pytest.mark.parametrize("message, change", [
    ("absmax", dict(absmax=torch.ones(3))),
    ("absmax", dict(absmax=torch.ones(4, dtype=torch.float16))),
    ("code", dict(code=torch.ones(15))),
    ("blocksize", dict(blocksize=48)),
    ("together", dict(offset=torch.tensor(0.0))),
    ("dtype", dict(dtype=torch.int8)),
])
def test_a_state_whose_pieces_disagree_is_refused(message, change):
    pieces = dict(absmax=torch.ones(4), shape=(4, 64), code=NF4_CODE, blocksize=64,
                  quant_type="nf4", dtype=torch.float32)
    QuantState(**pieces)
    with pytest.raises(ValueError, match=message):
        QuantState(**{**pieces, **change})


def test_gemv_refuses_rows_that_are_not_whole_blocks():
    packed, state = quantize_nf4(torch.randn(4, 96))
    with pytest.raises(ValueError, match="multiple of blocksize"):
        gemv(packed, state, torch.randn(96))


def test_thresholds_lie_between_their_codes():
    assert ((NF4_CODE[:-1] < midpoints(NF4_CODE)) & (midpoints(NF4_CODE) < NF4_CODE[1:])).all()
