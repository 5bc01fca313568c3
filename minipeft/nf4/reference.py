"""4-bit blockwise quantization in plain torch: the specification that cpu.py and gpu.py repeat.

    absmax_b = max |x_i|  over block b                 flat, row-major, `blocksize` weights each
    q_i      = number of thresholds below x_i * (1 / absmax_b)               0..15; a tie goes down
    x_i     ~= code[q_i] * absmax_b                    QLoRA, Dettmers et al. 2023, section 3

    thresholds: the 15 float32 midpoints of `code`; two q share a byte, the first in the high half.

Double quantization (the same paper, section 3) stores absmax itself in 8 bits:

    absmax_b ~= DYNAMIC_CODE[q8_b] * absmax2_c + offset      offset = mean(absmax), c: 256 blocks b

The bytes are those of bitsandbytes, tied in tests/parity/test_bitsandbytes.py. n weights, N blocks.
"""
import functools
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

STATE2_BLOCKSIZE = 256      # absmax values that one absmax2 serves
TABLE_BINS = 65536          # of the "table" search
SMALLEST_ABSMAX = 1e-38     # where bitsandbytes clamps absmax before it divides
# That is a denormal float32. Where torch flushes denormals it counts as zero, its inverse would be
# infinite and 0 * inf = NaN would code a zero block as 15: so both are worked out in Python.
SMALLEST_BITS = round(SMALLEST_ABSMAX * 2.0**149)       # of the float32 nearest to 1e-38
LARGEST_INVERSE = 1 / (SMALLEST_BITS * 2.0**-149)


def nf4_code() -> Tensor:
    """NormalFloat-4: normal quantiles, 7 negative, 0 and 8 positive, over the largest. (16,)

    offset = 1 - (1/32 + 1/30) / 2, half a bin of 16 and of 15 averaged, cut to 7 digits as in
    bitsandbytes' create_normal_map; its float32 linspace too is part of the result's last bit.
    """
    offset, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in torch.linspace(offset, 0.5, 9)[:-1].tolist()]
    negative = [-quantile(p) for p in torch.linspace(offset, 0.5, 8)[:-1].tolist()]
    code = torch.tensor(sorted([*negative, 0.0, *positive]))
    return code / code.max()


def fp4_code(smallest: float) -> Tensor:
    """Sign, 2 exponent bits, 1 mantissa bit: 0, smallest, (1 + m/2) 2^e for e = 1, 2, 3. (16,)"""
    magnitudes = [0.0, smallest, *[(1 + m / 2) * 2**e for e in (1, 2, 3) for m in (0, 1)]]
    return torch.tensor(sorted([*[-v for v in magnitudes], *magnitudes])) / max(magnitudes)


def dynamic_code() -> Tensor:
    """Dettmers' signed 8-bit dynamic map: 2^i linear steps for each power of ten i - 6. (256,)"""
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        means = 10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += means.tolist() + (-means).tolist()
    return torch.tensor(sorted(values))


NF4_CODE = nf4_code()
INT4_CODE = torch.arange(-8, 8) / 7     # absmax maps to 7, so -8/7 is never reached
FP4_CODE = fp4_code(smallest=1 / 16)    # bitsandbytes' "fp4"
E2M1_CODE = fp4_code(smallest=1.0)      # OCP's FP4 (E2M1): its subnormal is half the least normal
CODES = {"nf4": NF4_CODE, "int4": INT4_CODE, "fp4": FP4_CODE, "e2m1": E2M1_CODE}
DYNAMIC_CODE = dynamic_code()


def midpoints(code: Tensor) -> Tensor:
    """The decision thresholds of a sorted code: float32 means of neighbours."""
    return (code[:-1] + code[1:]) / 2


def inverse(absmax: Tensor) -> Tensor:
    """1 / absmax, finite also for blocks of zeros and denormals."""
    return torch.where(absmax > SMALLEST_ABSMAX, 1 / absmax, LARGEST_INVERSE)


def to_blocks(flat: Tensor, blocksize: int) -> Tensor:
    """(n,) -> (N, blocksize): the same memory, or a copy with a short last block zero-filled."""
    n_missing = -flat.numel() % blocksize
    return (F.pad(flat, (0, n_missing)) if n_missing else flat).view(-1, blocksize)


def why_not(device: torch.device) -> str | None:
    """Why this backend cannot run on the device: None, torch runs everywhere."""
    return None


def quantize(flat: Tensor, blocksize: int, code: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) float32, bfloat16 or float16 -> packed (ceil(n/2), 1) uint8, absmax (N,) float32."""
    blocks = to_blocks(flat.float(), blocksize)                     # (N, blocksize)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * inverse(absmax)[:, None]).flatten()[:flat.numel()]
    scaled = F.pad(scaled, (0, scaled.numel() % 2))             # an odd n: the last half is q(0)
    q = torch.bucketize(scaled, midpoints(code)).to(torch.uint8)    # right=False: a tie goes down
    return (q[0::2] << 4 | q[1::2])[:, None], absmax


def quantize_absmax(absmax: Tensor, search: str) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) float32 -> q8 (N,) uint8, absmax2 (ceil(N/256),), offset (): double quantization.

    bitsandbytes finds the nearest of 256 values by two rules that differ in about 2 codes of 1000:
    "nearest" compares with midpoints (its CUDA kernel); "table" looks the answer up by the value
    rounded to 16 bits (its CPU kernel), so values below 2e-5 of absmax2 all become one code.
    """
    offset = absmax.mean()
    if not torch.isfinite(offset):
        raise ValueError("the mean of absmax overflows float32, so that double quantization cannot "
                         "store it; scale the weight down or use compress_statistics=False")
    blocks = to_blocks(absmax - offset, STATE2_BLOCKSIZE)
    absmax2 = blocks.abs().amax(dim=1)
    scaled = blocks * inverse(absmax2)[:, None]                     # (N / 256, 256)
    find = {"nearest": nearest_search, "table": table_search}[search]
    q8 = find(scaled).masked_fill(absmax2[:, None] == 0, 0)
    return q8.flatten()[:absmax.numel()], absmax2, offset


def nearest_search(scaled: Tensor) -> Tensor:
    """The 8-bit code nearest to each value; a tie goes down."""
    return torch.bucketize(scaled, midpoints(DYNAMIC_CODE).to(scaled.device)).to(torch.uint8)


def table_search(scaled: Tensor) -> Tensor:
    """The 8-bit code nearest to each value's 16-bit bin."""
    bins = (scaled.clamp(-1, 1) + 1) * 0.5 * (TABLE_BINS - 1) + 0.5
    return search_table(scaled.device)[bins.to(torch.int32)]


@functools.cache
def search_table(device: torch.device) -> Tensor:
    """The code nearest to the value that each of 65536 bins stands for. (65536,) uint8"""
    values = -1 + 2 * torch.arange(TABLE_BINS, dtype=torch.float32) / (TABLE_BINS - 1)
    return nearest_search(values).to(device)


def dequantize_absmax(state) -> Tensor:
    """absmax (N,) in float32, double quantization undone where there is one."""
    if state.state2 is None:
        return state.absmax
    scale = state.state2.absmax.repeat_interleave(STATE2_BLOCKSIZE)[:state.absmax.numel()]
    return state.state2.code[state.absmax.int()] * scale + state.offset


def dequantize(packed: Tensor, state, out: Tensor) -> None:
    """Write code[q] * absmax, a float32 product rounded to out's dtype, into `out` (n,)."""
    packed = packed.view(-1)
    q = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:out.numel()]
    scale = dequantize_absmax(state).repeat_interleave(state.blocksize)[:out.numel()]
    out.copy_(state.code[q.int()] * scale)


def linear(packed: Tensor, state, x: Tensor) -> Tensor:
    """y = x W^T: (M, in) -> (M, out), by way of W in x's dtype."""
    return x @ dequantize_as(packed, state, x.dtype).T


def linear_backward(packed: Tensor, state, grad_y: Tensor) -> Tensor:
    """grad_x = grad_y W: (M, out) -> (M, in), in the same way."""
    return grad_y @ dequantize_as(packed, state, grad_y.dtype)


def dequantize_as(packed: Tensor, state, dtype: torch.dtype) -> Tensor:
    """W in any float dtype, rounded once from float32."""
    weight = torch.empty(state.shape, dtype=dtype, device=packed.device)
    dequantize(packed, state, weight.view(-1))
    return weight
