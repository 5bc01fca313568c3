"""GGUF, llama.cpp's file format: metadata and quantized tensors, read without llama.cpp.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
import math
import mmap
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import plain, short

SCALARS = {kind: np.dtype(name) for kind, name in {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8"}.items()}
STRING, ARRAY = 8, 9
F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30      # tensor types
SCALE, LOW = ("scale", "<f2"), ("low", "<f2")
# What is stored at a time: one weight, or 32 that share a block
BLOCK = {F32: np.dtype("<f4"), F16: np.dtype("<f2"), BF16: np.dtype("<u2"),
         Q4_0: np.dtype([SCALE, ("codes", "u1", 16)]),
         Q4_1: np.dtype([SCALE, LOW, ("codes", "u1", 16)]),
         Q8_0: np.dtype([SCALE, ("codes", "i1", 32)])}
SMALLEST_KEY, SMALLEST_TENSOR, MOST_AXES = 13, 32, 4      # bytes of an empty name and its value


class GGUF:
    """A GGUF file: `metadata` by key (arrays of numbers as numpy's), `tensor(name)` in float32.

    ValueError if it is damaged. Every count in it is checked against the bytes that are left
    before anything is read by it, so that what is allocated never exceeds a multiple of the file.
    """

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self.data = (mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                         if path.stat().st_size else b"")
        self.path, self.at = path, 0
        try:
            magic, version, n_tensors, n_keys = self.take("4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise Damaged(f"it must be a GGUF file of version 2 or 3, got {magic!r}, version "
                              f"{version}")
            self.room_for(n_keys, SMALLEST_KEY)
            self.metadata = self.unique(self.entry, n_keys)
            self.room_for(n_tensors, SMALLEST_TENSOR)
            self.tensors = self.unique(self.tensor_entry, n_tensors)
            self.start = self.start_of_tensors()
            self.check_tensors()
        except Damaged as error:
            raise ValueError(f"{path}: {error}; install or download it again, or take "
                             f"another file") from None

    def room_for(self, count: int, size: int) -> None:
        """Damaged unless `count` things of at least `size` bytes can follow."""
        left = len(self.data) - self.at
        if count * size > left:
            raise Damaged(f"truncated or no GGUF file: {count} times at least {size} bytes must "
                          f"follow byte {self.at}, and {left} do")

    def take(self, format: str) -> tuple:
        """The values at the current position, which moves on."""
        self.room_for(1, struct.calcsize("<" + format))
        values = struct.unpack_from("<" + format, self.data, self.at)
        self.at += struct.calcsize("<" + format)
        return values

    def numbers(self, kind: int, count: int) -> np.ndarray:
        """`count` numbers at the current position, which moves on; they stay in the file."""
        dtype = SCALARS[kind]
        self.room_for(count, dtype.itemsize)
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        self.room_for(length, 1)
        self.at += length
        try:
            return self.data[self.at - length:self.at].decode()
        except UnicodeDecodeError as error:
            raise Damaged(f"truncated or no GGUF file: the text before byte {self.at} is not UTF-8 "
                          f"({error.reason})") from None

    def unique(self, entry, count: int) -> dict:
        """`count` entries by their names, which must differ."""
        found = {}
        for name, value in (entry() for _ in range(count)):
            if name in found:
                raise Damaged(f"{plain(name)} stands in it twice")
            found[name] = value
        return found

    def entry(self) -> tuple[str, object]:
        name, (kind,) = self.string(), self.take("I")
        if kind == STRING:
            return name, self.string()
        if kind in SCALARS:
            return name, self.numbers(kind, 1).item()
        if kind != ARRAY:
            raise Damaged(f"{plain(name)} is of the unknown type {kind}")
        kind, count = self.take("IQ")
        if kind == STRING:
            self.room_for(count, 8)
            return name, [self.string() for _ in range(count)]
        if kind not in SCALARS:
            raise Damaged(f"{plain(name)} is an array of the type {kind}, which is none of numbers "
                          f"or texts")
        return name, self.numbers(kind, count) if count else []

    def tensor_entry(self) -> tuple[str, tuple]:
        """(name, (shape, type, offset)); the file lists the fastest dimension first."""
        name, (n_axes,) = self.string(), self.take("I")
        if not 1 <= n_axes <= MOST_AXES:
            raise Damaged(f"tensor {plain(name)} must have 1 to {MOST_AXES} axes, got {n_axes}")
        shape = self.take(f"{n_axes}Q")[::-1]
        if 0 in shape:
            raise Damaged(f"tensor {plain(name)} must have no axis of 0, got {shape}")
        return name, (shape, *self.take("IQ"))

    def start_of_tensors(self) -> int:
        """The first byte of the tensors, which is aligned."""
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**16:
            raise Damaged(f"general.alignment must be a whole number, 1 to {2**16}, got "
                          f"{short(alignment)}")
        return -(-self.at // alignment) * alignment

    def check_tensors(self) -> None:
        """Damaged unless every tensor is of a known type and lies in the file, in its own bytes:
        two in the same place could ask for any amount of memory."""
        end = 0
        for name, (shape, kind, offset) in sorted(self.tensors.items(), key=lambda t: t[1][2]):
            if kind not in BLOCK:
                raise Damaged(f"tensor {plain(name)} must be F32, F16, Q4_0, Q4_1, Q8_0 or BF16 "
                              f"(types {', '.join(map(str, sorted(BLOCK)))}), got type {kind}")
            if shape[-1] % weights_a_block(kind):
                raise Damaged(f"tensor {plain(name)} of type {kind} must have rows of blocks of "
                              f"{weights_a_block(kind)} weights, got the shape {shape}")
            size = math.prod(shape) // weights_a_block(kind) * BLOCK[kind].itemsize
            if offset < end:
                raise Damaged(f"tensor {plain(name)} lies in the bytes of another one")
            end = offset + size
            if self.start + end > len(self.data):
                raise Damaged(f"truncated: it ends inside tensor {plain(name)}")

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32; ValueError for numbers that are not finite."""
        shape, kind, offset = self.tensors[name]
        n_blocks = math.prod(shape) // weights_a_block(kind)
        blocks = np.frombuffer(self.data, BLOCK[kind], n_blocks, self.start + offset)
        with np.errstate(invalid="ignore"):        # a scale of infinity, which the next line sees
            weights = dequantize(blocks, kind)
        if not np.isfinite([weights.min(), weights.max()]).all():
            raise ValueError(f"{self.path}: tensor {plain(name)} must hold finite numbers, got NaN "
                             f"or infinity; install or download it again")
        return torch.from_numpy(weights).view(*shape)


class Damaged(Exception):
    """What is wrong with a GGUF file, for the sentence that names it."""


def weights_a_block(kind: int) -> int:
    return 1 if BLOCK[kind].names is None else 32


def dequantize(blocks: np.ndarray, kind: int) -> np.ndarray:
    """The float32 weights of N blocks.

    BF16:  the upper half of a float32's bits.
    Q8_0:  w = scale * code, codes signed.
    Q4_0:  w = scale * (code - 8); the low nibbles are weights 0 ... 15, the high ones 16 ... 31.
    Q4_1:  w = scale * code + low, nibbles in the same order.
    """
    if kind == BF16:
        return (blocks.astype(np.uint32) << 16).view(np.float32)
    if kind in (F32, F16):
        return blocks.astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[:, None]                       # (N, 1)
    if kind == Q8_0:
        return scale * blocks["codes"]                                        # (N, 32)
    w = np.empty((len(blocks), 2, 16), np.float32)
    w[:, 0], w[:, 1] = blocks["codes"] & 15, blocks["codes"] >> 4
    if kind == Q4_0:
        w -= 8
    w *= scale[:, None]
    if kind == Q4_1:
        w += blocks["low"].astype(np.float32)[:, None, None]
    return w
