"""Make gguf_types.json: pip install gguf==0.19.0, then python tests/golden/make_gguf.py"""
import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants

SOURCE = ("the Python package gguf 0.19.0 (llama.cpp's): quants.quantize of 64 normal numbers, "
          "then quants.dequantize")
x = (np.random.default_rng(0).standard_normal((2, 32)) * 0.02).astype(np.float32)
types = {}
for name in ("F16", "BF16", "Q4_0", "Q4_1", "Q8_0"):
    kind = GGMLQuantizationType[name]
    packed = np.ascontiguousarray(quants.quantize(x, kind))
    types[name] = {"type": int(kind), "bytes": packed.tobytes().hex(),
                   "weights": quants.dequantize(packed, kind).ravel().tolist()}
path = Path(__file__).with_name("gguf_types.json")
path.write_text(json.dumps({"source": SOURCE, "types": types}, indent=0) + "\n", encoding="utf-8")
