"""The reference's functions as machine code, compiled from this Python by Numba.

    quantize      absmax of a block, then a binary search among 15 thresholds held in registers
    dequantize    a block of codes -> code[q] * absmax, in the nearest cache -> rounded, written
    linear        a tile of W in x's dtype -> torch multiplies it -> a part of y
    few rows      with AVX512: codes -> weights in registers -> times x, added up
    one row       elsewhere: a block of codes -> weights in the nearest cache -> the same

Weights go in and out as their bits, and the integer type says what they are: int32 float32,
uint16 bfloat16, int16 float16 (Numba has neither of the last two). Blocks are shared out among
torch.get_num_threads() threads. The first call compiles (seconds, `python -m minipeft bench nf4`
says how many); later processes load the result from __pycache__ or the user's cache, where one of
them can be written. It is one file because Numba compiles anew when a kernel's own file changes,
and sees no other.
"""
import warnings
from collections.abc import Iterator
from itertools import pairwise, product
from math import gcd, prod
from threading import Thread

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload
from torch import Tensor

from .reference import LARGEST_INVERSE, SMALLEST_BITS, midpoints, to_blocks
from .state import restored_as

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}
HALF_VALUES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
LARGEST = np.float32(LARGEST_INVERSE)
NOTHING = np.empty(0, np.float32)
WEIGHTS_A_THREAD = 2**20        # a millisecond of work; starting a thread takes a tenth of it
TILE = 2**21                    # weights of W in memory together
# What ATEN_CPU_CAPABILITY allows, and what the processor has for which Numba compiles. Arguments of
# kernels, never a choice inside one: Numba's cache would not know of it
FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512" and "+avx512bw" in FEATURES
BFLOAT16 = AVX512 and "+avx512bf16" in FEATURES
CHUNK = 128                     # weights of a row whose codes fill a register: 16 words of 8
FUSED_ROWS = 16                 # of x, at most: with more, a tile of W pays for itself; in float32,
                                # and a W that does not stay in the cache, with twice as many
# Rows of x taken together -> as many zeros, for each row of W taken with them. Numba compiles a
# kernel for each of these types; more sums than 16 would not stay in registers
SUMS = {1: 8 * ((0,),), 8: 2 * (8 * (0,),)}
WIDE = (0,) if AVX512 else ()   # its type too says which look_up is compiled


def has_cache() -> bool:
    """Whether Numba may write its cache anywhere: beside this file, or into the user's own."""
    try:
        njit(cache=True)(has_cache)          # compiles nothing, but looks for the folder
    except RuntimeError as error:
        warnings.warn(f"every process will compile the NF4 kernels anew, for seconds: {error}; "
                      "NUMBA_CACHE_DIR may name a folder that can be written", stacklevel=2)
        return False
    return True


# error_model numpy: a division by zero does not raise. Helpers are compiled into the kernels.
KERNEL = dict(nogil=True, cache=has_cache(), error_model="numpy")


def why_not(device: torch.device) -> str | None:
    """Why this backend cannot run on the device, or None."""
    return None if device.type == "cpu" else "it reads and writes the CPU's memory"


def quantize(flat: Tensor, blocksize: int, code: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) float32, bfloat16 or float16 -> packed (ceil(n/2), 1) uint8, absmax (N,) float32."""
    blocks = to_blocks(flat, blocksize)                                     # (N, blocksize)
    packed = torch.empty(blocks.shape[0], blocksize // 2, dtype=torch.uint8)
    absmax = torch.empty(blocks.shape[0])
    share_out(quantize_blocks, *blocks.shape,
              bits_of(blocks), tuple(midpoints(code).numpy()), packed.numpy(), absmax.numpy())
    return packed.view(-1, 1)[:-(-flat.numel() // 2)], absmax


def dequantize(packed: Tensor, state, out: Tensor) -> None:
    """Write code[q] * absmax, a float32 product rounded to out's dtype, into `out` (n,)."""
    whole = to_blocks(out, state.blocksize)     # out itself; a copy if its last block is short
    blocks = blocks_of(packed, state)
    n = gcd(len(blocks), 64)        # blocks together: each row of a tile has its own cost
    dequantize_tile(blocks.view(-1, n, blocks.shape[1]), state, 0, 0,
                    whole.view(-1, n * state.blocksize))
    if whole.numel() > out.numel():
        out.copy_(whole.view(-1)[:out.numel()])


def linear(packed: Tensor, state, x: Tensor) -> Tensor:
    """y = x W^T: (M, in) -> (M, out), W dequantized to x's dtype, which torch multiplies.

    A few rows go without W in memory, summed in float32.
    """
    (n_out, n_in), n_rows = state.shape, len(x)
    whole = n_in % state.blocksize == 0 and x.dtype != torch.float64
    few = 2 * FUSED_ROWS if x.dtype == torch.float32 and n_out * n_in > TILE else FUSED_ROWS
    if whole and AVX512 and 0 < n_rows <= few and n_out >= 8:
        return linear_in_registers(packed, state, x)
    if whole and n_rows == 1:
        return gemv(packed, state, x)
    y = x.new_empty(n_rows, n_out)
    for rows, tile in tiles(packed, state, x.dtype, axis=0):
        torch.mm(x, tile.T, out=y[:, rows])
    return y


def linear_in_registers(packed: Tensor, state, x: Tensor) -> Tensor:
    """The same for a few rows: W goes from its codes into registers and no further.

    Float32 to float32 rounding. For a bfloat16 x, where the processor multiplies pairs of them, the
    code is rounded to bfloat16 too, by 2^-8 of itself at most.
    """
    (n_out, n_in), n_rows = state.shape, len(x)
    rows = x if x.dtype == torch.bfloat16 and BFLOAT16 else x.float()
    sums, y = SUMS[1 if n_rows == 1 else 8], rows.new_empty(n_rows, n_out)
    share_out(multiply_rows, -(-n_out // len(sums)), len(sums) * n_in * n_rows // 8,
              packed.view(n_out, -1).numpy(), state.blocksize, state.code.numpy(), *scales(state),
              bits_of(rows.contiguous()), sums, bits_of(y))
    return y.type_as(x)


def linear_backward(packed: Tensor, state, grad_y: Tensor) -> Tensor:
    """grad_x = grad_y W: (M, out) -> (M, in), from tiles of W in grad_y's dtype.

    They are whole columns of W, so that none is added to what another gave.
    """
    grad_x = grad_y.new_empty(len(grad_y), state.shape[1])
    for columns, tile in tiles(packed, state, grad_y.dtype, axis=1):
        torch.mm(grad_y, tile, out=grad_x[:, columns])
    return grad_x


def gemv(packed: Tensor, state, x: Tensor) -> Tensor:
    """The same for one x, (1, in) -> (1, out), without a tile; W's rows are whole blocks."""
    n_out, n_in = state.shape
    y = torch.empty(1, n_out)
    codes = blocks_of(packed, state).view(n_out, -1, state.blocksize // 2)
    share_out(gemv_rows, n_out, n_in, codes.numpy(), state.code.numpy(), WIDE, *scales(state),
              x.float().reshape(codes.shape[1], -1).numpy(), y[0].numpy())
    return y.to(x.dtype)


def tiles(packed: Tensor, state, dtype: torch.dtype, axis: int) -> Iterator[tuple[slice, Tensor]]:
    """(part, W[part] or, with axis 1, W[:, part]) until they cover W; each overwrites the last.

    A tile has at most TILE weights, or one row or one column of blocks of W. A W of no more is one
    tile, and so is any W whose rows are not whole blocks.
    """
    shape, blocksize = list(state.shape), state.blocksize
    written = restored_as(dtype)
    if shape[1] % blocksize or prod(shape) <= TILE:
        whole = torch.empty(shape, dtype=written)
        dequantize(packed, state, whole.view(-1))
        yield slice(None), whole.to(dtype)
        return
    step = (1, blocksize)[axis]
    n = max(1, TILE // (shape[1 - axis] * step)) * step
    blocks = packed.view(shape[0], -1, blocksize // 2)
    workspace = torch.empty(n * shape[1 - axis], dtype=written)
    for first in range(0, shape[axis], n):
        shape[axis] = min(n, state.shape[axis] - first)
        tile = workspace[:prod(shape)].view(shape)
        row, column = ((first, 0), (0, first // blocksize))[axis]
        dequantize_tile(blocks, state, row, column, tile)
        yield slice(first, first + n), tile.to(dtype)


def dequantize_tile(blocks: Tensor, state, row: int, column: int, out: Tensor) -> None:
    """Fill `out` (rows, columns) from `blocks`, W's codes (rows, blocks, blocksize / 2), beginning
    with the block at (row, column)."""
    bits = bits_of(out.view(len(out), -1, state.blocksize))
    share_out(dequantize_rows, *out.shape, blocks.numpy(), row, column, state.code.numpy(), WIDE,
              *scales(state), bits)


def blocks_of(packed: Tensor, state) -> Tensor:
    """The codes as (N, blocksize / 2): the same memory, or a copy if the last block is short."""
    return to_blocks(packed.view(-1), state.blocksize // 2)


def share_out(kernel, n_parts: int, weights_a_part: int, *arrays) -> None:
    """kernel(first, last, *arrays) over the ranges of parts that this and other threads take.

    Threads of our own, not numba's parallel=True: its OpenMP pool spins beside torch's, and on busy
    cores a small call then took milliseconds instead of microseconds. One thread: a plain call.
    """
    worth = n_parts * weights_a_part // WEIGHTS_A_THREAD
    n_threads = max(1, min(torch.get_num_threads(), worth))
    edges = [n_parts * i // n_threads for i in range(n_threads + 1)]
    threads = [Thread(target=kernel, args=(*ends, *arrays)) for ends in pairwise(edges[1:])]
    for thread in threads:
        thread.start()
    kernel(0, edges[1], *arrays)
    for thread in threads:
        thread.join()


def bits_of(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as integers."""
    return tensor.view(BITS[tensor.dtype]).numpy()


def scales(state) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.float32]:
    """What scale_of needs: absmax, then code, absmax and offset of the double quantization."""
    if state.state2 is None:
        return state.absmax.numpy(), NOTHING, NOTHING, np.float32(0)
    return (state.absmax.numpy(), state.state2.code.numpy(), state.state2.absmax.numpy(),
            np.float32(state.offset.item()))


@njit(**KERNEL)
def quantize_blocks(first, last, blocks, thresholds, packed, absmax):
    """blocks (N, blocksize) bits -> packed (N, blocksize / 2), absmax (N,)."""
    found = np.empty(blocks.shape[1], np.uint8)
    for b in range(first, last):
        block, codes = blocks[b], packed[b]
        largest = np.int32(0)       # positive floats are ordered as their bits, NaN above infinity
        for i in range(block.size):
            largest = max(largest, magnitude_bits(block[i]))
        absmax[b] = as_float(largest)
        tiny = absmax[b] <= as_float(SMALLEST_BITS)
        inverse = LARGEST if tiny else np.float32(1) / absmax[b]
        for i in range(block.size):
            found[i] = search(widen(block[i]) * inverse, thresholds)
        for i in range(codes.size):
            codes[i] = found[2 * i] << 4 | found[2 * i + 1]


@njit
def search(x, t):
    """How many of the 15 thresholds are below x: halve the candidates without a branch.

    Each `if` picks between registers, so 8 or 16 weights are searched at once (SIMD).
    """
    a = x > t[7]
    if a:
        t0, t1, t2, t3, t4, t5, t6 = t[8], t[9], t[10], t[11], t[12], t[13], t[14]
    else:
        t0, t1, t2, t3, t4, t5, t6 = t[0], t[1], t[2], t[3], t[4], t[5], t[6]
    b = x > t3
    if b:
        t0, t1, t2 = t4, t5, t6
    c = x > t1
    d = x > (t2 if c else t0)
    return np.int32(8 * np.int32(a) + 4 * np.int32(b) + 2 * np.int32(c) + np.int32(d))


@njit(**KERNEL)
def dequantize_rows(first, last, codes, row, column, code, wide, absmax, code2, absmax2, offset,
                    out):
    """codes (rows, blocks, blocksize / 2) from (row, column) on -> out (rows, blocks, blocksize)
    bits."""
    values = np.empty(out.shape[2], np.float32)
    for r in range(first, last):
        start, row_codes, row_out = (row + r) * codes.shape[1], codes[row + r], out[r]
        for c in range(out.shape[1]):
            b = column + c
            look_up(row_codes[b], code, wide,
                    scale_of(start + b, absmax, code2, absmax2, offset), values)
            weights = row_out[c]
            for i in range(values.size):
                weights[i] = narrow(values[i], weights)


@njit(**KERNEL)
def gemv_rows(first, last, codes, code, wide, absmax, code2, absmax2, offset, x, y):
    """codes (out, blocks, blocksize / 2), x (blocks, blocksize) -> y (out,)."""
    values = np.empty(x.shape[1], np.float32)
    for row in range(first, last):
        total = np.float32(0)
        for b in range(codes.shape[1]):
            scale = scale_of(row * codes.shape[1] + b, absmax, code2, absmax2, offset)
            look_up(codes[row, b], code, wide, scale, values)
            total += dot(values, x[b])
        y[row] = total


@njit(**KERNEL)
def multiply_rows(first, last, codes, blocksize, code, absmax, code2, absmax2, offset, x, sums, y):
    """codes (out, in / 2), x (M, in) bits, `sums` one of SUMS -> y (M, out) bits."""
    n_rows, height = len(sums), len(sums[0])
    n_blocks = 2 * codes.shape[1] // blocksize
    tiled = tile_rows(x, height)
    table = np.empty(32, x.dtype)       # the code twice over, for indexes of 5 bits
    for i in range(32):
        table[i] = narrow(code[i & 15], table)
    block_of_lane = np.empty(16, np.int32)
    for lane in range(16):
        block_of_lane[lane] = 8 * lane // blocksize
    block_scales = np.zeros((n_rows, n_blocks + 16), np.float32)
    totals = np.zeros((n_rows, height, 16), np.float32)
    for group in range(first, last):
        row = min(n_rows * group, codes.shape[0] - n_rows)      # the last may repeat some
        for r in range(n_rows):
            fill_scales((row + r) * n_blocks, absmax, code2, absmax2, offset,
                        block_scales[r, :n_blocks])
        for tile in range(tiled.shape[0]):
            for chunk in range(tiled.shape[1]):
                block = CHUNK * chunk // blocksize
                add_products(codes[row:, 64 * chunk:], table, block_scales[:, block:],
                             block_of_lane, tiled[tile, chunk], sums, totals)
            for r in range(n_rows):
                for m in range(height):
                    found = total(totals[r, m])
                    if tile * height + m < y.shape[0]:          # the last tile may have too many
                        y[tile * height + m, row + r] = narrow(found, y)


@njit
def tile_rows(x, height):
    """x (M, in) -> (tiles, chunks, steps, height, lanes): what meets the codes, step by step.

    Lane j of step k holds the code k (0 in the lowest bits) of its word: the weight steps j + k,
    with the two of a byte changed over, since the first stands in the high half.
    """
    n_steps = 2 * x.itemsize
    n_lanes = CHUNK // n_steps
    tiled = np.zeros((-(-x.shape[0] // height), -(-x.shape[1] // CHUNK), n_steps, height, n_lanes),
                     x.dtype)
    for m in range(x.shape[0]):
        for chunk in range(tiled.shape[1]):
            row, tile = x[m, CHUNK * chunk:], tiled[m // height, chunk, :, m % height]
            for lane in range(min(n_lanes, row.size // n_steps)):
                for step in range(n_steps):
                    tile[step ^ 1, lane] = row[n_steps * lane + step]
    return tiled


@njit(fastmath={"reassoc", "contract"})     # lets SIMD sum in an order of its own
def dot(values, x):
    """sum_i values_i x_i over one block."""
    total = np.float32(0)
    for i in range(values.size):
        total += values[i] * x[i]
    return total


@njit(fastmath={"reassoc"})
def total(lanes):
    """The sum of 16 lanes, which are zeros again."""
    result = np.float32(0)
    for lane in range(16):
        result += lanes[lane]
        lanes[lane] = 0
    return result


@njit
def as_float(bits):
    """The float32 with these bits."""
    return np.int32(bits).view(np.float32)


@njit
def as_bits(value):
    """The bits of a float32."""
    return np.float32(value).view(np.int32)


@njit
def magnitude_bits(bits):
    """The bits of |w| as float32."""
    return np.int32(as_bits(widen(bits)) & 0x7FFFFFFF)


@njit
def to_bfloat16(value):
    """float32 -> the bits of bfloat16, its upper half, rounded to nearest, ties to even."""
    bits = np.uint32(as_bits(value))
    return np.uint16(np.uint32(bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


@njit
def to_float16(value):
    """float32 -> the bits of float16, rounded to nearest, ties to even."""
    bits = as_bits(value)
    magnitude = np.int32(bits & 0x7FFFFFFF)
    if magnitude >= 0x477FF000:                 # 65520, halfway beyond the largest: infinity
        half = np.int32(0x7C00)
    elif magnitude < 0x38800000:                # 2^-14: adding 0.5 leaves steps of 2^-24, rounded
        half = np.int32(as_bits(as_float(magnitude) + np.float32(0.5)) - 0x3F000000)
    else:                                       # drop 13 bits and lower the exponent's bias by 112
        half = np.int32((magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13)
    return np.int16(half | ((bits >> 16) & 0x8000))


def widen(bits):
    """The weight with these bits, as float32. Numba picks the overload below by type."""


@overload(widen)
def widen_overload(bits):
    if bits == types.int32:
        return lambda bits: as_float(bits)
    if bits == types.uint16:
        return lambda bits: as_float(np.int32(bits) << 16)
    return lambda bits: HALF_VALUES[bits & 0xFFFF]


def narrow(value, like):
    """The bits of a float32 in the format of the array `like`."""


@overload(narrow)
def narrow_overload(value, like):
    if like.dtype == types.int32:
        return lambda value, like: as_bits(value)
    if like.dtype == types.uint16:
        return lambda value, like: to_bfloat16(value)
    return lambda value, like: to_float16(value)


def scale_of(b, absmax, code2, absmax2, offset):
    """The absmax of block b, double quantization undone where absmax is in 8 bits."""


@overload(scale_of)
def scale_of_overload(b, absmax, code2, absmax2, offset):
    if absmax.dtype == types.float32:
        return lambda b, absmax, code2, absmax2, offset: absmax[b]
    return lambda b, absmax, code2, absmax2, offset: (code2[absmax[b]] * absmax2[b >> 8] + offset)


def look_up(codes, code, wide, scale, values):
    """codes (blocksize / 2,) -> code[q] * scale (blocksize,), which stay in the nearest cache."""


@overload(look_up)
def look_up_overload(codes, code, wide, scale, values):
    def anywhere(codes, code, wide, scale, values):
        for i in range(codes.size):
            values[2 * i] = code[codes[i] >> 4] * scale
            values[2 * i + 1] = code[codes[i] & 15] * scale

    def avx512(codes, code, wide, scale, values):
        for i in range(0, codes.size, 16):
            expand(codes, i, code, scale, values)
    return avx512 if len(wide) else anywhere


def fill_scales(start, absmax, code2, absmax2, offset, out):
    """The absmax of `out.size` blocks from `start` on."""


@overload(fill_scales)
def fill_scales_overload(start, absmax, code2, absmax2, offset, out):
    def plain(start, absmax, code2, absmax2, offset, out):
        for b in range(out.size):
            out[b] = absmax[start + b]

    def nested(start, absmax, code2, absmax2, offset, out):
        done = 0
        while done < out.size:      # as far as one absmax2 goes
            n = min(out.size - done, 256 - (start + done) % 256)
            scale, part = absmax2[(start + done) >> 8], out[done:done + n]
            q8 = absmax[start + done:start + done + n]
            for i in range(n):
                part[i] = code2[q8[i]] * scale + offset
            done += n
    return plain if absmax.dtype == types.float32 else nested


@intrinsic
def expand(typing_context, codes, start, code, scale, values):
    """16 bytes of codes from `start` on -> 32 of code[q] * scale, from one register.

    In LLVM's own language, since Numba has no word for "pick lanes of a register by these indexes".
    LLVM makes one AVX512 instruction, vpermd, of the sixteen picks.
    """
    def build(context, builder, signature, arguments):
        codes, start, code, scale, values = (
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array)
            else value for kind, value in zip(signature.args, arguments))
        book = builder.load(builder.bitcast(code, FLOATS.as_pointer()), align=4)
        book = builder.fmul(book, every_lane(builder, scale))
        pairs = builder.bitcast(builder.gep(codes, [start]), BYTES.as_pointer())
        pairs = builder.load(pairs, align=1)
        high = builder.lshr(pairs, ir.Constant(BYTES, [4] * 16))
        low = builder.and_(pairs, ir.Constant(BYTES, [15] * 16))
        for half in (0, 1):
            order = [8 * half + k // 2 + 16 * (k % 2) for k in range(16)]   # high 0, low 0, high 1
            q = builder.shuffle_vector(high, low, ir.Constant(INTEGERS, order))
            at = builder.add(builder.mul(start, start.type(2)), start.type(16 * half))
            at = builder.bitcast(builder.gep(values, [at]), FLOATS.as_pointer())
            builder.store(pick(builder, book, builder.zext(q, INTEGERS)), at, align=4)
        return context.get_dummy_value()
    return types.void(codes, start, code, scale, values), build


@intrinsic
def add_products(typing_context, codes, table, scales, block_of_lane, x, sums, totals):
    """totals (rows of W, rows of x, 16) += a chunk of these rows of W, times these rows of x.

    A lane has one word of codes; each step shifts it by a code and looks that up in `table`. All of
    a lane's weights are of one block, whose absmax multiplies what the steps have added up.
    """
    pairs, n_rows, height = x.dtype == types.uint16, len(sums), len(sums[0])

    def build(context, builder, signature, arguments):
        codes, table, scales, block_of_lane, x, _, totals = (
            context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array)
            else value for kind, value in zip(signature.args, arguments))
        table = load(builder, table.data, 0, INTEGERS)
        words = [load_words(builder, codes, row) for row in range(n_rows)]
        for row in range(n_rows, 2 * n_rows):       # the next to be read: memory is slower
            call(builder, "llvm.prefetch.p0", ir.VoidType(), row_of(builder, codes, row),
                 *map(ir.IntType(32), (0, 3, 1)))       # to be read, kept in all caches, data
        found = dict.fromkeys(product(range(n_rows), range(height)), FLOATS(None))
        for step, m in product(range(4 if pairs else 8), range(height)):
            if m == 0:
                weights = [look_up_codes(builder, table, word, step, pairs) for word in words]
            taken = load(builder, x.data, (step * height + m) * (32 if pairs else 16), INTEGERS)
            for row in range(n_rows):
                found[row, m] = add_product(builder, weights[row], taken, found[row, m], pairs)
        lanes = load(builder, block_of_lane.data, 0, INTEGERS)
        for (row, m), part in found.items():
            scale = load(builder, row_of(builder, scales, row), 0, FLOATS)
            scale = call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, scale, lanes)
            at = 16 * (row * height + m)
            part = call(builder, "llvm.fma.v16f32", FLOATS, scale, part,
                        load(builder, totals.data, at, FLOATS))
            builder.store(part, vector_at(builder, totals.data, at, FLOATS), align=4)
        return context.get_dummy_value()
    return types.void(codes, table, scales, block_of_lane, x, sums, totals), build


FLOATS, INTEGERS, BYTES = (ir.VectorType(lane, 16)
                           for lane in (ir.FloatType(), ir.IntType(32), ir.IntType(8)))
HALVES = ir.VectorType(ir.IntType(16), 32)


def look_up_codes(builder, table, words, step, pairs):
    """Code `step` of each word as float32; of each half of a word as bfloat16, so in pairs."""
    kind = HALVES if pairs else INTEGERS
    codes = builder.lshr(builder.bitcast(words, kind), ir.Constant(kind, [4 * step] * kind.count))
    if pairs:       # by the lowest 5 bits; of float32 by the lowest 4
        picked = call(builder, "llvm.x86.avx512.permvar.hi.512", HALVES,
                      builder.bitcast(table, HALVES), codes)
        return builder.bitcast(picked, INTEGERS)
    return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, builder.bitcast(table, FLOATS),
                codes)


def add_product(builder, weights, x, total, pairs):
    """total + weights x, lane by lane; the products of both halves if they are pairs."""
    if pairs:
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, weights, x)
    return call(builder, "llvm.fma.v16f32", FLOATS, weights, builder.bitcast(x, FLOATS), total)


def call(builder, name, result, *arguments):
    """LLVM's intrinsic of this name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.module.declare_intrinsic(name, fnty=kind), arguments)


def vector_at(builder, pointer, at, kind):
    """The address of a vector, `at` elements behind the pointer."""
    return builder.bitcast(builder.gep(pointer, [ir.IntType(64)(at)]), kind.as_pointer())


def load(builder, pointer, at, kind):
    return builder.load(vector_at(builder, pointer, at, kind), align=1)


def load_words(builder, codes, row):
    """16 words of codes (rows, bytes), or what is left of the row, then zeros."""
    n_words = builder.lshr(builder.extract_value(codes.shape, 1), ir.IntType(64)(2))
    n_words = builder.insert_element(ir.Constant(INTEGERS, ir.Undefined),
                                     builder.trunc(n_words, ir.IntType(32)), ir.IntType(32)(0))
    n_words = builder.shuffle_vector(n_words, n_words, ir.Constant(INTEGERS, [0] * 16))
    there = builder.icmp_unsigned("<", ir.Constant(INTEGERS, list(range(16))), n_words)
    address = builder.bitcast(row_of(builder, codes, row), INTEGERS.as_pointer())
    return call(builder, "llvm.masked.load.v16i32.p0", INTEGERS, address, ir.IntType(32)(1), there,
                INTEGERS(None))


def row_of(builder, array, row):
    """The address of a row of a 2-D array."""
    stride = builder.extract_value(array.strides, 0)
    first = builder.bitcast(array.data, ir.IntType(8).as_pointer())
    address = builder.gep(first, [builder.mul(stride, stride.type(row))])
    return builder.bitcast(address, array.data.type)


def every_lane(builder, value):
    """The value in each of 16 lanes."""
    one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(INTEGERS, [0] * 16))


def pick(builder, book, indexes):
    """book[indexes], lane by lane."""
    picked = ir.Constant(FLOATS, ir.Undefined)
    for lane in range(16):
        k = ir.IntType(32)(lane)
        value = builder.extract_element(book, builder.extract_element(indexes, k))
        picked = builder.insert_element(picked, value, k)
    return picked
