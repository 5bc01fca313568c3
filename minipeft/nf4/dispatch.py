"""Quantizing, dequantizing, products: every check of the input, and the choice of the backend.

A backend is a module with why_not(device), quantize, dequantize, linear and linear_backward;
reference.py is the specification and the others give its bytes. None stands in for another unseen:
asking for one that cannot run is an error, and backend_for says which one None means.
"""
import functools
import importlib.util
from math import prod

import torch
from torch import Tensor

from . import reference
from .reference import CODES, DYNAMIC_CODE, NF4_CODE, STATE2_BLOCKSIZE
from .state import BLOCKSIZES, DTYPES, QuantState

# module, the package it needs; imported when first asked for: numba takes half a second
BACKENDS = {"reference": (".reference", "torch"), "cpu": (".cpu", "numba"),
            "triton": (".gpu", "triton")}
FASTEST = {"cpu": "cpu", "cuda": "triton"}      # by device type; "reference" elsewhere


def backend_for(device) -> str:
    """The name of the fastest backend that works for tensors on `device` here."""
    device = torch.device(device)
    fastest = FASTEST.get(device.type, "reference")
    return fastest if why_not(fastest, device) is None else "reference"


def why_not(name: str, device: torch.device) -> str | None:
    """Why a backend cannot run for tensors on the device, or None if it can."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {sorted(BACKENDS)} or None, got {name!r}")
    module, package = BACKENDS[name]
    if importlib.util.find_spec(package) is None:
        return f"it needs the package {package}: pip install {package}"
    return importlib.import_module(module, __package__).why_not(device)


@functools.cache        # asked anew for every product, it would take as long as a small one
def usable_backend(name: str | None, device: torch.device):
    """The module asked for, or the fastest; ValueError with the reason if it cannot run."""
    name = backend_for(device) if name is None else name
    reason = why_not(name, device)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run for tensors on {device}: {reason}; "
                         f"backend=None would take {backend_for(device)!r}")
    return importlib.import_module(BACKENDS[name][0], __package__)


def quantize_nf4(weight: Tensor, blocksize: int = 64, compress_statistics: bool = False,
                 code: Tensor = NF4_CODE, nested_search: str | None = None,
                 backend: str | None = None) -> tuple[Tensor, QuantState]:
    """weight, n values of any shape -> packed (ceil(n/2), 1) uint8 and its QuantState.

    blocksize: weights that one absmax serves, a power of two from 32 to 4096
    compress_statistics: double quantization, 8 bits an absmax instead of 32
    code: any sorted 16 float32 values that hold 0 and 1; NF4_CODE, INT4_CODE, FP4_CODE
    nested_search: how an 8-bit absmax is found, "table" as bitsandbytes does on a CPU or "nearest"
        as it does on a GPU (reference.quantize_absmax); None: by the weight's device

    Raises TypeError for a dtype other than float32, bfloat16, float16 and ValueError for values
    that are not finite, an empty tensor, or an argument outside these lists.
    """
    check_weight(weight)
    check_blocksize(blocksize)
    quant_type = check_code(code)
    search = check_search(nested_search, weight.device)
    code = code.to(weight.device)
    module = usable_backend(backend, weight.device)
    packed, absmax = module.quantize(weight.detach().reshape(-1), blocksize, code)
    if not torch.isfinite(absmax).all():
        raise ValueError("weight must be finite, got NaN or infinity in "
                         f"{int((~torch.isfinite(absmax)).sum())} of {absmax.numel()} blocks")
    state = QuantState(absmax, weight.shape, code, blocksize, quant_type, weight.dtype)
    return packed, double_quantize(state, search) if compress_statistics else state


def double_quantize(state: QuantState, search: str) -> QuantState:
    """The same state with its absmax in 8 bits."""
    q8, absmax2, offset = reference.quantize_absmax(state.absmax, search)
    state2 = QuantState(absmax2, None, DYNAMIC_CODE.to(absmax2.device), STATE2_BLOCKSIZE, None,
                        torch.float32)
    return QuantState(q8, state.shape, state.code, state.blocksize, state.quant_type, state.dtype,
                      offset, state2)


def dequantize_nf4(packed: Tensor, state: QuantState, dtype: torch.dtype | None = None,
                   out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """code[q] * absmax in float32, rounded to `dtype` (None: the weight's), in the weight's shape.

    `out`, if given, is written and returned; ValueError unless it is contiguous and of the weight's
    shape, device and `dtype`.
    """
    check_packed(packed, state)
    if dtype is None:
        dtype = state.dtype if out is None else out.dtype
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {DTYPES}, got {dtype}; convert the result instead")
    if out is None and backend is None and torch.compiler.is_compiling():
        return dequantize_in_graph(packed, *pieces(state), dtype)
    if out is None:
        out = torch.empty(state.shape, dtype=dtype, device=packed.device)
    check_out(out, state, dtype, packed.device)
    usable_backend(backend, packed.device).dequantize(packed, state, out.detach().view(-1))
    return out


def gemv(packed: Tensor, state: QuantState, x: Tensor, backend: str | None = None) -> Tensor:
    """y = W x straight from the codes, summed in float32: x (in,) -> y (out,) of x's dtype.

    Raises ValueError unless W is (out, in) with `in` a multiple of the block size.
    """
    check_packed(packed, state)
    if len(state.shape) != 2 or state.shape[1] % state.blocksize:
        raise ValueError("gemv needs a weight (out, in) with `in` a multiple of blocksize "
                         f"{state.blocksize}, got {tuple(state.shape)}; use dequantize_nf4() @ x")
    if x.dtype not in DTYPES or x.dim() != 1:
        raise ValueError(f"x must be ({state.shape[1]},), one of {DTYPES}; got {tuple(x.shape)}, "
                         f"{x.dtype}")
    return linear_nf4(packed, state, x, backend)


def linear_nf4(packed: Tensor, state: QuantState, x: Tensor, backend: str | None = None) -> Tensor:
    """y = x W^T from the codes, x (..., in) -> y (..., out) in x's dtype; no gradient passes.

    W is dequantized to x's dtype, on a CPU a part of it at a time; a few rows go without it.
    Raises ValueError for an x that does not fit.
    """
    check_packed(packed, state)
    check_activations("x", x, state.shape[1], packed.device)
    if backend is None and torch.compiler.is_compiling():
        return linear_in_graph(packed, *pieces(state), x)
    x, leading = x.detach(), x.shape[:-1]
    y = usable_backend(backend, packed.device).linear(packed, state, x.reshape(-1, x.shape[-1]))
    return y.view(*leading, state.shape[0])


def linear_nf4_backward(packed: Tensor, state: QuantState, grad_y: Tensor,
                        backend: str | None = None) -> Tensor:
    """grad_x = grad_y W in the same way: grad_y (..., out) -> grad_x (..., in)."""
    check_packed(packed, state)
    check_activations("grad_y", grad_y, state.shape[0], packed.device)
    if backend is None and torch.compiler.is_compiling():
        return linear_backward_in_graph(packed, *pieces(state), grad_y)
    grad_y, leading = grad_y.detach(), grad_y.shape[:-1]
    module = usable_backend(backend, packed.device)
    grad_x = module.linear_backward(packed, state, grad_y.reshape(-1, grad_y.shape[-1]))
    return grad_x.view(*leading, state.shape[1])


# Inside torch.compile a kernel is one node of the graph: what chooses and calls it is not traced


def pieces(state: QuantState) -> tuple:
    """A state as arguments that an operator can have."""
    absmax2, code2 = (state.state2.absmax, state.state2.code) if state.nested else (None, None)
    return (state.absmax, state.code, list(state.shape), state.blocksize, state.quant_type,
            state.dtype, state.offset, absmax2, code2)


def whole(absmax, code, shape, blocksize, quant_type, weight_dtype, offset, absmax2,
          code2) -> QuantState:
    """The inverse of `pieces`."""
    state2 = None
    if absmax2 is not None:
        state2 = QuantState(absmax2, None, code2, STATE2_BLOCKSIZE, None, torch.float32)
    return QuantState(absmax, torch.Size(shape), code, blocksize, quant_type, weight_dtype, offset,
                      state2)


@torch.library.custom_op("minipeft::dequantize_nf4", mutates_args=())
def dequantize_in_graph(packed: Tensor, absmax: Tensor, code: Tensor, shape: list[int],
                        blocksize: int, quant_type: str, weight_dtype: torch.dtype,
                        offset: Tensor | None, absmax2: Tensor | None, code2: Tensor | None,
                        dtype: torch.dtype) -> Tensor:
    state = whole(absmax, code, shape, blocksize, quant_type, weight_dtype, offset, absmax2, code2)
    return dequantize_nf4(packed, state, dtype)


@dequantize_in_graph.register_fake
def _(packed, absmax, code, shape, blocksize, quant_type, weight_dtype, offset, absmax2, code2,
      dtype):
    return packed.new_empty(shape, dtype=dtype)


@torch.library.custom_op("minipeft::linear_nf4", mutates_args=())
def linear_in_graph(packed: Tensor, absmax: Tensor, code: Tensor, shape: list[int],
                    blocksize: int, quant_type: str, weight_dtype: torch.dtype,
                    offset: Tensor | None, absmax2: Tensor | None, code2: Tensor | None,
                    x: Tensor) -> Tensor:
    state = whole(absmax, code, shape, blocksize, quant_type, weight_dtype, offset, absmax2, code2)
    return linear_nf4(packed, state, x)


@linear_in_graph.register_fake
def _(packed, absmax, code, shape, blocksize, quant_type, weight_dtype, offset, absmax2, code2, x):
    return x.new_empty((*x.shape[:-1], shape[0]))


@torch.library.custom_op("minipeft::linear_nf4_backward", mutates_args=())
def linear_backward_in_graph(packed: Tensor, absmax: Tensor, code: Tensor, shape: list[int],
                             blocksize: int, quant_type: str, weight_dtype: torch.dtype,
                             offset: Tensor | None, absmax2: Tensor | None, code2: Tensor | None,
                             grad_y: Tensor) -> Tensor:
    state = whole(absmax, code, shape, blocksize, quant_type, weight_dtype, offset, absmax2, code2)
    return linear_nf4_backward(packed, state, grad_y)


@linear_backward_in_graph.register_fake
def _(packed, absmax, code, shape, blocksize, quant_type, weight_dtype, offset, absmax2, code2,
      grad_y):
    return grad_y.new_empty((*grad_y.shape[:-1], shape[1]))


def check_weight(weight: Tensor) -> None:
    """What quantize_nf4 can take, as far as it can be told without reading the values."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dtype not in DTYPES:
        raise TypeError(f"weight must be one of {DTYPES}, got {weight.dtype}; convert it first")
    if weight.numel() == 0:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    if weight.is_meta:
        raise ValueError("weight is on the meta device and has no values to quantize; "
                         "NF4Linear.from_linear counts its bytes")


def check_blocksize(blocksize: int) -> None:
    """A power of two from 32 to 4096."""
    if blocksize not in BLOCKSIZES or isinstance(blocksize, bool):
        raise ValueError(f"blocksize must be one of {BLOCKSIZES}, got {blocksize!r}")


def check_code(code: Tensor) -> str:
    """The code's name, after checking that it is one: 16 sorted finite float32 values."""
    if not isinstance(code, Tensor) or code.dtype != torch.float32 or code.shape != (16,):
        got = f"{code.dtype} {tuple(code.shape)}" if isinstance(code, Tensor) else repr(code)
        raise ValueError(f"code must be a float32 tensor of 16 values, got {got}")
    code = code.cpu()
    if not torch.isfinite(code).all() or (code[1:] < code[:-1]).any():
        raise ValueError(f"code must be finite and sorted, got {code.tolist()}; "
                         "use code.sort().values")
    return next((name for name, known in CODES.items() if torch.equal(code, known)), "custom")


def check_search(nested_search: str | None, device: torch.device) -> str:
    """The rule for 8-bit absmax: the one given, or bitsandbytes' for the device."""
    if nested_search not in (None, "table", "nearest"):
        raise ValueError(f"nested_search must be 'table', 'nearest' or None, got {nested_search!r}")
    by_device = "nearest" if device.type == "cuda" else "table"
    return by_device if nested_search is None else nested_search


def check_packed(packed: Tensor, state: QuantState) -> None:
    """The codes' length, dtype and device against the state's."""
    n_bytes = -(-prod(state.shape) // 2)
    if (isinstance(packed, Tensor) and packed.numel() == n_bytes and packed.dtype == torch.uint8
            and packed.is_contiguous() and packed.device == state.absmax.device):
        return
    wanted = f"packed must be {n_bytes} contiguous uint8 on {state.absmax.device} for a weight " \
             f"{tuple(state.shape)}"
    if not isinstance(packed, Tensor):
        raise TypeError(f"{wanted}; got {type(packed).__name__}")
    raise ValueError(f"{wanted}; got {packed.numel()} {packed.dtype} on {packed.device}, "
                     f"contiguous: {packed.is_contiguous()}")


def check_activations(name: str, x: Tensor, width: int, device: torch.device) -> None:
    """What multiplies W: its last dimension, dtype and device."""
    if x.shape[-1:] != (width,) or not x.is_floating_point() or x.device != device:
        raise ValueError(f"{name} must be floating point, (..., {width}), on {device}; got "
                         f"{x.dtype}, {tuple(x.shape)}, on {x.device}")


def check_out(out: Tensor, state: QuantState, dtype: torch.dtype, device: torch.device) -> None:
    """The output buffer's shape, dtype, device and layout."""
    if (out.shape != state.shape or out.dtype != dtype or out.device != device
            or not out.is_contiguous()):
        raise ValueError(f"out must be contiguous, {dtype}, {tuple(state.shape)}, on {device}; got "
                         f"{out.dtype}, {tuple(out.shape)}, on {out.device}, "
                         f"contiguous: {out.is_contiguous()}")
