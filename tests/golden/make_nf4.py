"""Writes nf4.json, what bitsandbytes makes of golden_weight() on a CPU: python make_nf4.py

test_nf4_reference.py then checks parity byte by byte where bitsandbytes is not installed.
"""
import base64
import json
from pathlib import Path

import torch

FILE = Path(__file__).with_name("nf4.json")


def golden_weight(dtype: torch.dtype) -> torch.Tensor:
    """(130, 128): 260 blocks of 64, so that double quantization has two blocks; no RNG needed."""
    i = torch.arange(130 * 128, dtype=torch.int64)
    uniform = (i * 48271 % 65537).float() / 65536 - 0.5
    return (uniform ** 3 * (1 + i // 64 % 17)).view(130, 128).to(dtype)


def encoded(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.contiguous().view(-1).view(torch.uint8).numpy()).decode()


if __name__ == "__main__":
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    cases = []
    for name in ("float32", "bfloat16", "float16"):
        for blocksize in (64, 128):
            weight = golden_weight(getattr(torch, name))
            packed, plain = quantize_4bit(weight, blocksize=blocksize, quant_type="nf4")
            _, nested = quantize_4bit(weight, blocksize=blocksize, quant_type="nf4",
                                      compress_statistics=True)
            cases.append({
                "dtype": name, "blocksize": blocksize, "packed": encoded(packed),
                "absmax": encoded(plain.absmax), "absmax8": encoded(nested.absmax),
                "absmax2": encoded(nested.state2.absmax), "offset": nested.offset.item(),
                "first_weights": dequantize_4bit(packed, plain).flatten()[:8].tolist()})
    FILE.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
