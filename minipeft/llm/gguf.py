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

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
           10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8            # tensor types; 32 weights share a block of the quantized two
BLOCK = {F32: np.dtype("<f4"),
         Q4_1: np.dtype([("scale", "<f2"), ("low", "<f2"), ("codes", "u1", 16)]),
         Q8_0: np.dtype([("scale", "<f2"), ("codes", "i1", 32)])}


class GGUF:
    """A GGUF file: `metadata` by key, `tensor(name)` in float32. ValueError if it is damaged."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self.data = (mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                         if path.stat().st_size else b"")
        self.path, self.at = path, 0
        try:
            magic, version, n_tensors, n_keys = self.take("4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"{path} must be a GGUF file of version 2 or 3, "
                                 f"got {magic!r}, version {version}")
            self.metadata = {self.string(): self.value(*self.take("I")) for _ in range(n_keys)}
            self.tensors = dict(self.tensor_entry() for _ in range(n_tensors))
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"{path} is truncated or no GGUF file ({error}); install or "
                             f"download it again") from None
        alignment = self.metadata.get("general.alignment", 32)
        self.start = math.ceil(self.at / alignment) * alignment      # of the tensors' bytes

    def take(self, format: str) -> tuple:
        """The values at the current position, which moves on."""
        values = struct.unpack_from("<" + format, self.data, self.at)
        self.at += struct.calcsize("<" + format)
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        self.at += length
        return self.data[self.at - length:self.at].decode()

    def value(self, kind: int):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, length = self.take("IQ")
            return [self.value(kind) for _ in range(length)]
        return self.take(SCALARS[kind])[0]

    def tensor_entry(self) -> tuple[str, tuple]:
        """(name, (shape, type, offset)); the file lists the fastest dimension first."""
        name, (n_axes,) = self.string(), self.take("I")
        shape = self.take(f"{n_axes}Q")[::-1]
        return name, (shape, *self.take("IQ"))

    def tensor(self, name: str) -> Tensor:
        """Any tensor as float32; ValueError for a type that is not read here or missing bytes."""
        shape, kind, offset = self.tensors[name]
        if kind not in BLOCK:
            raise ValueError(f"{self.path}: tensor {name} must be F32, Q4_1 or Q8_0 "
                             f"(types {F32}, {Q4_1}, {Q8_0}), got type {kind}")
        n_blocks = math.prod(shape) // (1 if kind == F32 else 32)
        first = self.start + offset
        if first + n_blocks * BLOCK[kind].itemsize > len(self.data):
            raise ValueError(f"{self.path} is truncated: it ends inside tensor {name}; install or "
                             f"download it again")
        blocks = np.frombuffer(self.data, BLOCK[kind], n_blocks, first)
        return torch.from_numpy(dequantize(blocks, kind)).view(*shape)


def dequantize(blocks: np.ndarray, kind: int) -> np.ndarray:
    """The float32 weights of N blocks of 32.

    Q8_0:  w = scale * code, codes signed.
    Q4_1:  w = scale * code + low; the low nibbles are weights 0 ... 15, the high ones 16 ... 31.
    """
    if kind == F32:
        return blocks.astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[:, None]                       # (N, 1)
    if kind == Q8_0:
        return scale * blocks["codes"]                                        # (N, 32)
    w = np.empty((len(blocks), 2, 16), np.float32)
    w[:, 0], w[:, 1] = blocks["codes"] & 15, blocks["codes"] >> 4
    w *= scale[:, None]
    w += blocks["low"].astype(np.float32)[:, None, None]
    return w
