"""4-bit NormalFloat: quantize, dequantize, and the frozen Linear that QLoRA stands on.

Read reference.py first: it is the specification. cpu.py and gpu.py give the same bytes, faster.
"""
from .dispatch import backend_for, dequantize_nf4, gemv, quantize_nf4
from .linear import NF4Linear, quantize_model
from .reference import E2M1_CODE, FP4_CODE, INT4_CODE, NF4_CODE
from .state import QuantState
