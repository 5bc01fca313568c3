"""y = x W^T + b with W frozen in 4 bits: the base of QLoRA (Dettmers et al. 2023, eq. 5)."""
import functools
import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..adapter import Adapter, replace_modules
from ..files import parse_json
from .dispatch import (check_blocksize, check_weight, dequantize_nf4, linear_nf4,
                       linear_nf4_backward, quantize_nf4)
from .reference import CODES, DYNAMIC_CODE, STATE2_BLOCKSIZE
from .state import QuantState, restored_as


@functools.cache
def code_on(quant_type: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """A layer's code and that of double quantization: copied once, since a GPU waits for a copy."""
    return CODES[quant_type].to(device), DYNAMIC_CODE.to(device)


class FrozenNF4(torch.autograd.Function):
    """y = x W^T, grad_x = grad_y W: both from the codes, of which W has 4 to 8 times the bytes."""

    @staticmethod
    def forward(ctx, x, packed, state):
        ctx.save_for_backward(packed)
        ctx.state = state
        return linear_nf4(packed, state, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        packed, = ctx.saved_tensors
        return linear_nf4_backward(packed, ctx.state, grad_y), None, None


class NF4Linear(nn.Module):
    """nn.Linear whose frozen weight (out, in) is n 4-bit codes in N blocks.

    packed (ceil(n/2), 1), absmax (N,) float32; with double quantization absmax (N,) uint8,
    absmax2 (ceil(N/256),) and offset () float32: 0.5625 and 0.51587 bytes a weight at blocksize 64.
    Float32 buffers are kept as their bytes (uint8): `.to(bfloat16)` casts float buffers, and an
    absmax of 8 significant bits would spoil every weight. Inputs may have any float dtype.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, blocksize: int = 64,
                 double_quant: bool = True, quant_type: str = "nf4",
                 weight_dtype: torch.dtype = torch.float32, device=None):
        super().__init__()
        check_blocksize(blocksize)
        if quant_type not in CODES:
            raise ValueError(f"quant_type must be one of {sorted(CODES)}, got {quant_type!r}")
        self.in_features, self.out_features = in_features, out_features
        self.blocksize, self.double_quant, self.quant_type = blocksize, double_quant, quant_type
        self.weight_dtype = weight_dtype
        for name, shape in self.buffer_shapes().items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.uint8, device=device))
        self.kept_state = None          # see quant_state
        self.bias = None
        if bias:
            zeros = torch.zeros(out_features, dtype=weight_dtype, device=device)
            self.bias = nn.Parameter(zeros, requires_grad=False)

    def buffer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Bytes of each buffer; a float32 takes four."""
        n = self.in_features * self.out_features
        n_blocks = -(-n // self.blocksize)
        packed = {"packed": (-(-n // 2), 1)}
        if not self.double_quant:
            return packed | {"absmax": (4 * n_blocks,)}
        return packed | {"absmax": (n_blocks,), "absmax2": (4 * -(-n_blocks // STATE2_BLOCKSIZE),),
                         "offset": (4,)}

    @classmethod
    def from_linear(cls, linear: nn.Linear, blocksize: int = 64, double_quant: bool = True,
                    quant_type: str = "nf4") -> "NF4Linear":
        """The Linear with its weight quantized; on the meta device, its shapes and byte counts.

        Raises what quantize_nf4 raises.
        """
        weight, bias = linear.weight, linear.bias
        layer = cls(linear.in_features, linear.out_features, bias is not None, blocksize,
                    double_quant, quant_type, weight.dtype, weight.device)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        if not weight.is_meta:
            packed, state = quantize_nf4(weight, blocksize, double_quant, CODES[quant_type])
            layer.fill(packed, state)
        return layer.train(linear.training)

    def fill(self, packed: Tensor, state: QuantState) -> None:
        """Take over these codes and statistics."""
        self.packed = packed
        self.absmax = state.absmax.view(torch.uint8).clone()     # not a slice of padded blocks
        if self.double_quant:
            self.absmax2 = state.state2.absmax.view(torch.uint8)
            self.offset = state.offset.view(1).view(torch.uint8)

    def get_extra_state(self) -> Tensor:
        """What the codes mean, as JSON bytes in a tensor, which every format of files takes."""
        return torch.frombuffer(bytearray(json.dumps(self.meaning()), "utf-8"), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """ValueError if the codes that are loaded mean something else in this layer."""
        do = "make the layer as the one that was saved"
        saved = parse_json(bytes(state.tolist()), "the state of an NF4Linear", do)
        if saved != self.meaning():
            raise ValueError(f"the state of an NF4Linear says {saved}, and the layer is "
                             f"{self.meaning()}; {do}")

    def meaning(self) -> dict:
        """All that turns codes into weights and is no buffer."""
        return {"quant_type": self.quant_type, "blocksize": self.blocksize,
                "double_quant": self.double_quant, "shape": [self.out_features, self.in_features]}

    @property
    def quant_state(self) -> QuantState:
        """What dequantize_nf4 needs beside `packed`; it shares the buffers' memory.

        Kept for as long as it does, since making it takes as long as the product of a small row.
        """
        if torch.compiler.is_compiling():       # where tensors have no addresses
            return self.make_quant_state()
        if self.kept_state is None or not self.shares_memory(self.kept_state):
            self.kept_state = self.make_quant_state()
        return self.kept_state

    def make_quant_state(self) -> QuantState:
        """Views of the buffers, checked."""
        device, shape = self.packed.device, torch.Size((self.out_features, self.in_features))
        code, dynamic_code = code_on(self.quant_type, device)
        if not self.double_quant:
            return QuantState(self.absmax.view(torch.float32), shape, code, self.blocksize,
                              self.quant_type, self.weight_dtype)
        state2 = QuantState(self.absmax2.view(torch.float32), None, dynamic_code,
                            STATE2_BLOCKSIZE, None, torch.float32)
        return QuantState(self.absmax, shape, code, self.blocksize, self.quant_type,
                          self.weight_dtype, self.offset.view(torch.float32)[0], state2)

    def shares_memory(self, state: QuantState) -> bool:
        """Whether the state's statistics are in these buffers: no longer, once those were moved,
        copied, unpickled or replaced, which a module does in many ways."""
        _, *mine = self._buffers.values()               # all but the codes
        theirs = [state.absmax]
        if state.nested:
            theirs += [state.state2.absmax, state.offset]
        return all(a.data_ptr() == b.data_ptr() for a, b in zip(mine, theirs, strict=True))

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W (out, in) as the model computes with it; dtype None: that of the original weight."""
        dtype = self.weight_dtype if dtype is None else dtype
        return dequantize_nf4(self.packed, self.quant_state, restored_as(dtype)).to(dtype)

    @property
    def weight(self) -> Tensor:
        """W, built anew at every call: what nn.Linear's users read (T5 its dtype)."""
        return self.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out) in x's dtype."""
        if torch.is_grad_enabled() and x.requires_grad:
            y = FrozenNF4.apply(x, self.packed, self.quant_state)
        else:           # autograd's bookkeeping takes as long as the product of one small row
            y = linear_nf4(self.packed, self.quant_state, x)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """As nn.Linear's, with what was quantized how."""
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"bias={self.bias is not None}, blocksize={self.blocksize}, "
                f"double_quant={self.double_quant}, quant_type={self.quant_type!r}")


def quantize_model(model: nn.Module, blocksize: int = 64, double_quant: bool = True,
                   skip: Iterable[str] = ("lm_head",)) -> nn.Module:
    """Replace every nn.Linear by its NF4Linear, in place; returns the model.

    skip: names matched on whole dotted suffixes, "up_proj" or "mlp.up_proj"; the default keeps the
    output head, as transformers does. Layers go one at a time, so that a large model is never in
    memory twice; all of them are checked before the first. Raises TypeError or ValueError that
    names the layer, and then the model is as it was.
    """
    check_blocksize(blocksize)
    linears = find_linears(model, skip)
    for paths, linear in linears:
        check_quantizable(paths[0], linear.weight)
    while linears:
        paths, linear = linears.pop(0)      # our reference to the old weight ends with this round
        layer = NF4Linear.from_linear(linear, blocksize, double_quant)
        replace_modules(model, dict.fromkeys(paths, layer))
    return model


def find_linears(model: nn.Module, skip: Iterable[str]) -> list[tuple[list[str], nn.Linear]]:
    """Every nn.Linear that is not skipped, with all the paths at which it stands."""
    if isinstance(skip, str):
        raise TypeError(f"skip must be a list or tuple of names, got the string {skip!r}; "
                        f"write skip=({skip!r},)")
    if any(isinstance(module, Adapter) for module in model.modules()):
        raise ValueError("the model has adapters in it, whose own weights would be quantized too; "
                         "call quantize_model first, then get_peft_model")
    skip, paths, linears = tuple(skip), {}, {}
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module) is nn.Linear:       # a subclass may do something else with its weight
            paths.setdefault(module, []).append(path)
    check_skip(skip, [path for group in paths.values() for path in group])
    linears = [(group, module) for module, group in paths.items()
               if not any(matches(path, name) for path in group for name in skip)]
    if not linears or "" in linears[0][0]:
        raise ValueError("quantize_model needs a model that holds nn.Linear layers outside skip="
                         f"{skip}, got {type(model).__name__} with none; a single layer is "
                         "quantized by NF4Linear.from_linear")
    return linears


def matches(path: str, name: str) -> bool:
    """Whether `name` is a whole dotted suffix of `path`."""
    return path == name or path.endswith("." + name)


def check_skip(skip: tuple[str, ...], paths: list[str]) -> None:
    """Every name must mean some Linear, but the default may not: a misspelt name raises."""
    for name in skip:
        if name != "lm_head" and not any(matches(path, name) for path in paths):
            raise ValueError(f"skip name {name!r} matches no nn.Linear; names are whole dotted "
                             f"suffixes of {', '.join(paths[:8])}{', ...' if paths[8:] else ''}")


def check_quantizable(path: str, weight: Tensor) -> None:
    """quantize_nf4's checks ahead of time, with the layer's name."""
    try:
        if not weight.is_meta:
            check_weight(weight)
            check_finite(weight)
    except (TypeError, ValueError) as error:
        raise type(error)(f"cannot quantize {path}: {error}") from error


def check_finite(weight: Tensor) -> None:
    """One pass without a copy: the extremes are NaN or infinite if any value is."""
    smallest, largest = torch.aminmax(weight.detach())
    if not (torch.isfinite(smallest) and torch.isfinite(largest)):
        raise ValueError("weight must be finite, got NaN or infinity")
