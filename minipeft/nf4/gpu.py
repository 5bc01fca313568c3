"""The reference's functions as Triton kernels, for CUDA tensors.

Each program takes TILE bytes of codes, two weights a byte. On a CPU the same source runs under
TRITON_INTERPRET=1 (slowly, block by block in numpy), which is how it is tested without a GPU.
Tile sizes are first guesses: they have not been tuned or timed on a GPU.
"""
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import LARGEST_INVERSE, SMALLEST_BITS, STATE2_BLOCKSIZE, midpoints
from .state import DTYPES, restored_as

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"     # triton reads it when it is imported
TILE = 2048
EXACT = dict(enable_fp_fusion=False)    # a * b + c in two roundings, as the specification has it


def why_not(device: torch.device) -> str | None:
    """Why this backend cannot run on the device, or None."""
    if device.type == "cuda" or (device.type == "cpu" and INTERPRETED):
        return None
    return "Triton needs a CUDA tensor, or TRITON_INTERPRET=1 before the start to test on a CPU"


def quantize(flat: Tensor, blocksize: int, code: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) float32, bfloat16 or float16 -> packed (ceil(n/2), 1) uint8, absmax (N,) float32."""
    n = flat.numel()
    packed = torch.empty(-(-n // 2), 1, dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(-(-n // blocksize), device=flat.device)
    n_blocks = max(1, TILE // blocksize)
    quantize_kernel[triton.cdiv(absmax.numel(), n_blocks),](
        flat, midpoints(code), packed, absmax, n, SMALLEST_BITS, LARGEST_INVERSE,
        HALF=blocksize // 2, BLOCKS=n_blocks, **EXACT)
    return packed, absmax


def dequantize(packed: Tensor, state, out: Tensor) -> None:
    """Write code[q] * absmax, a float32 product rounded to out's dtype, into `out` (n,)."""
    dequantize_kernel[triton.cdiv(packed.numel(), TILE),](
        packed, state.code, *scales(state), out, out.numel(), HALF=state.blocksize // 2,
        NESTED=state.nested, STATE2=STATE2_BLOCKSIZE, TILE=TILE, **EXACT)


def linear(packed: Tensor, state, x: Tensor) -> Tensor:
    """y = x W^T: (M, in) -> (M, out); one row straight from the codes, more by way of W, which
    torch multiplies in x's dtype."""
    if len(x) == 1 and state.shape[1] % state.blocksize == 0 and x.dtype in DTYPES:
        return gemv(packed, state, x)
    return x @ dequantize_as(packed, state, x.dtype).T


def linear_backward(packed: Tensor, state, grad_y: Tensor) -> Tensor:
    """grad_x = grad_y W: (M, out) -> (M, in), by way of W."""
    return grad_y @ dequantize_as(packed, state, grad_y.dtype)


def dequantize_as(packed: Tensor, state, dtype: torch.dtype) -> Tensor:
    """W in any float dtype."""
    weight = torch.empty(state.shape, dtype=restored_as(dtype), device=packed.device)
    dequantize(packed, state, weight.view(-1))
    return weight.to(dtype)


def gemv(packed: Tensor, state, x: Tensor) -> Tensor:
    """y = x W^T for one x, (1, in) -> (1, out), summed in float32; W's rows are whole blocks."""
    n_out, n_in = state.shape
    y = torch.empty(1, n_out, dtype=x.dtype, device=x.device)
    gemv_kernel[n_out,](packed, state.code, *scales(state), x, y, n_in // 2,
                        HALF=state.blocksize // 2, NESTED=state.nested, STATE2=STATE2_BLOCKSIZE,
                        TILE=min(TILE, triton.next_power_of_2(n_in // 2)), **EXACT)
    return y


def scales(state) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What scale_of needs: absmax, then code, absmax and offset of the double quantization."""
    if state.state2 is None:
        return (state.absmax,) * 4      # the last three are not read
    return state.absmax, state.state2.code, state.state2.absmax, state.offset


@triton.jit
def quantize_kernel(flat, thresholds, packed, absmax, n, smallest_bits, largest_inverse,
                    HALF: tl.constexpr, BLOCKS: tl.constexpr):
    """BLOCKS blocks: weights as (BLOCKS, HALF) pairs of a high and a low half byte."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    byte = block[:, None] * HALF + tl.arange(0, HALF)[None, :]                  # (BLOCKS, HALF)
    high = tl.load(flat + 2 * byte, mask=2 * byte < n, other=0).to(tl.float32)
    low = tl.load(flat + 2 * byte + 1, mask=2 * byte + 1 < n, other=0).to(tl.float32)
    # as bits, so that NaN counts as larger than any number
    bits = tl.maximum(high.to(tl.int32, bitcast=True) & 0x7FFFFFFF,
                      low.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    bits = tl.max(bits, axis=1)                                                 # (BLOCKS,)
    largest = bits.to(tl.float32, bitcast=True)
    tl.store(absmax + block, largest, mask=block * 2 * HALF < n)
    inverse = tl.where(bits > smallest_bits, tl.div_rn(1.0, largest), largest_inverse)[:, None]
    q_high = tl.zeros((BLOCKS, HALF), tl.int32)
    q_low = tl.zeros((BLOCKS, HALF), tl.int32)
    for k in tl.static_range(15):
        threshold = tl.load(thresholds + k)
        q_high += (high * inverse > threshold).to(tl.int32)
        q_low += (low * inverse > threshold).to(tl.int32)
    tl.store(packed + byte, (q_high << 4 | q_low).to(tl.uint8), mask=2 * byte < n)


@triton.jit
def scale_of(block, mask, absmax, code2, absmax2, offset, NESTED: tl.constexpr,
             STATE2: tl.constexpr):
    """The absmax of each block, double quantization undone where there is one."""
    scale = tl.load(absmax + block, mask=mask, other=0)
    if NESTED:
        value = tl.load(code2 + scale.to(tl.int32))
        scale = value * tl.load(absmax2 + block // STATE2, mask=mask, other=0) + tl.load(offset)
    return scale


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """To nearest, ties to even; for bfloat16 by hand, since Triton's interpreter cuts instead."""
    if dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        value = bits.to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def dequantize_kernel(packed, code, absmax, code2, absmax2, offset, out, n, HALF: tl.constexpr,
                      NESTED: tl.constexpr, STATE2: tl.constexpr, TILE: tl.constexpr):
    """TILE bytes -> 2 TILE weights."""
    byte = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)            # (TILE,)
    mask = 2 * byte < n
    q = tl.load(packed + byte, mask=mask, other=0).to(tl.int32)
    scale = scale_of(byte // HALF, mask, absmax, code2, absmax2, offset, NESTED, STATE2)
    high = tl.load(code + (q >> 4)) * scale
    low = tl.load(code + (q & 15)) * scale
    weights = 2 * byte[:, None] + tl.arange(0, 2)[None, :]                      # (TILE, 2)
    tl.store(out + weights, rounded(tl.join(high, low), out.dtype.element_ty), mask=weights < n)


@triton.jit
def gemv_kernel(packed, code, absmax, code2, absmax2, offset, x, y, row_bytes, HALF: tl.constexpr,
                NESTED: tl.constexpr, STATE2: tl.constexpr, TILE: tl.constexpr):
    """One row of W times x."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, row_bytes, TILE):
        i = start + tl.arange(0, TILE)                                          # (TILE,)
        mask = i < row_bytes
        byte = row * row_bytes + i
        q = tl.load(packed + byte, mask=mask, other=0).to(tl.int32)
        scale = scale_of(byte // HALF, mask, absmax, code2, absmax2, offset, NESTED, STATE2)
        even = tl.load(x + 2 * i, mask=mask, other=0).to(tl.float32)
        odd = tl.load(x + 2 * i + 1, mask=mask, other=0).to(tl.float32)
        total += scale * (tl.load(code + (q >> 4)) * even + tl.load(code + (q & 15)) * odd)
    tl.store(y + row, rounded(tl.sum(total, axis=0), y.dtype.element_ty))
