"""LoRA: low-rank adaptation of a frozen linear layer.

    y = W0 x + b + s B A x,    s = alpha / r            Hu et al. 2021, section 4.1

    W0 (out, in) frozen;  A (r, in) drawn at random;  B (out, r) zero, so that the adapted layer
    starts as the base, bitwise. r (in + out) trainable numbers in place of in * out.

The base layer may be anything with a forward and two widths: an `nn.Linear`, transformers'
`Conv1D`, or an `NF4Linear`. The last is all there is to QLoRA.
"""
import copy
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import (Adapter, AdapterSet, TaskType, check_choice, check_count, check_task_type,
                      find_modules)
from .hf_names import hf_keywords

FEW_ROWS = 64       # about where both take as long, at widths of 576 and 1536 and r = 8


@hf_keywords
@dataclass(frozen=True)
class LoraConfig:
    """HuggingFace PEFT's names; ValueError for values out of range."""

    peft_type: ClassVar[str] = "LORA"
    r: int = 8                                       # rank of the update
    lora_alpha: float = 8                            # the update is scaled by lora_alpha / r
    lora_dropout: float = 0.0                        # on the input of A, in training
    target_modules: Collection[str] | str | None = None   # or "all-linear"; None: q_proj, v_proj
    use_rslora: bool = False                         # scale by lora_alpha / sqrt(r) instead
    init_lora_weights: str | bool = "gaussian"       # A: N(0, 1 / in); True: U(-1, 1) / sqrt(in)
    task_type: TaskType | str | None = None
    inference_mode: bool = False                     # loaded to be used, not trained

    def __post_init__(self):
        check_count("r", self.r)
        if not (isinstance(self.lora_alpha, int | float) and 0 < self.lora_alpha < math.inf):
            raise ValueError(f"lora_alpha must be a positive number, got {self.lora_alpha!r}")
        if not (isinstance(self.lora_dropout, int | float) and 0 <= self.lora_dropout < 1):
            raise ValueError(f"lora_dropout must lie in [0, 1), got {self.lora_dropout!r}")
        check_choice("use_rslora", self.use_rslora, (True, False))
        check_choice("init_lora_weights", self.init_lora_weights, ("gaussian", True))
        check_choice("inference_mode", self.inference_mode, (True, False))
        check_task_type(self.task_type)
        check_targets(self.target_modules)

    def file_fields(self, model: nn.Module) -> dict:
        """What HuggingFace PEFT needs to know besides."""
        return dict(bias="none", fan_in_fan_out=any(map(is_conv1d, model.modules())))

    @property
    def scaling(self) -> float:
        """s. alpha / r: Hu et al. 2021; alpha / sqrt(r), "rsLoRA": Kalajdzievski 2023."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class LoraLinear(Adapter):
    """y = base_layer(x) + s B A dropout(x);  x (..., in), y (..., out).

    Computed in the dtype of the base's y, and so are the activations kept for A and B; of few rows
    in float32 (product_dtype). A and B may be float32 over a bfloat16 base: steps of AdamW are
    smaller than the spacing of bfloat16.
    """

    def __init__(self, base_layer: nn.Module, config: LoraConfig, dtype: torch.dtype):
        super().__init__(base_layer)
        n_in, n_out = linear_widths(base_layer)
        where = dict(bias=False, device=next_tensor(base_layer).device, dtype=dtype)
        self.scaling = config.scaling
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        self.lora_A = nn.Linear(n_in, config.r, **where)     # nn.Linear draws U(-1, 1) / sqrt(in)
        self.lora_B = nn.Linear(config.r, n_out, **where)
        nn.init.zeros_(self.lora_B.weight)
        if config.init_lora_weights == "gaussian":
            nn.init.normal_(self.lora_A.weight, std=1 / math.sqrt(n_in))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)                                           # W0 x + b, (..., out)
        dtype = product_dtype(y)
        A, B = (linear.weight.to(dtype) for linear in (self.lora_A, self.lora_B))
        low = F.linear(self.lora_dropout(x.type_as(A)), A)               # A x, (..., r)
        # y + s B (A x) in one pass over y; (B A) x would cost in * out a token, as the base does
        rows = (t.reshape(-1, t.shape[-1]) for t in (y.type_as(A), low))
        return torch.addmm(*rows, B.T, alpha=self.scaling).type_as(y).view_as(y)

    def delta_weight(self) -> Tensor:
        """s B A, (out, in)."""
        return self.scaling * self.lora_B.weight @ self.lora_A.weight

    @property
    def weight(self) -> Tensor:
        """W0 + s B A, laid out as the base's, for callers that read a layer's weight and never call
        it: nn.MultiheadAttention, nn.TransformerEncoder in evaluation. (What somebody else has
        packed stays as it is.)"""
        W0 = self.base_layer.weight
        delta = self.delta_weight().T if is_conv1d(self.base_layer) else self.delta_weight()
        return (W0 + delta).to(W0.dtype) if W0.is_floating_point() else W0

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def merge(self) -> nn.Module:
        """W0 + s B A in a plain linear layer; a 4-bit base becomes a dequantized `nn.Linear`."""
        merged = plain_linear(self.base_layer)
        W0 = merged.weight
        delta = self.delta_weight().to(torch.promote_types(W0.dtype, torch.float32))
        W = W0 + (delta.T if is_conv1d(merged) else delta)      # Conv1D stores (in, out)
        merged.weight = nn.Parameter(W.detach().to(W0.dtype), requires_grad=W0.requires_grad)
        return merged


def product_dtype(y: Tensor) -> torch.dtype:
    """What A and B are multiplied in: y's dtype; on a CPU float32 if y has few rows, since a thin
    product in 16 bits takes longer there than to widen all of its parts."""
    few = y.device.type == "cpu" and y.numel() < FEW_ROWS * y.shape[-1]
    return torch.promote_types(y.dtype, torch.float32) if few else y.dtype


def check_targets(targets) -> None:
    """ValueError unless `targets` is None, "all-linear", or a list or set of names."""
    if targets is None or targets == "all-linear":
        return
    if isinstance(targets, str):
        raise ValueError(f"target_modules must be a list of names or 'all-linear', got the string "
                         f"{targets!r}; write [{targets!r}] (a name, not a pattern)")
    if not (isinstance(targets, Collection) and targets
            and all(isinstance(name, str) for name in targets)):
        raise ValueError(f"target_modules must be a list of at least one name, got {targets!r}")


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is the linear layer of transformers' GPT-2: y = x W + b with W (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, None of anything else."""
    if is_conv1d(module):
        return tuple(module.weight.shape)
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features, module.out_features
    return None


def plain_linear(module: nn.Module) -> nn.Module:
    """A copy of a linear layer in floating point: its own kind, or nn.Linear for an NF4Linear.

    TypeError for a layer quantized by somebody else, whose weight we cannot read.
    """
    if not hasattr(module, "dequantize"):
        if not module.weight.is_floating_point():
            raise TypeError(f"cannot merge into a {type(module).__name__}, whose weight is packed "
                            f"in {module.weight.dtype}; keep the adapter, or quantize with "
                            f"minipeft.quantize_model")
        return copy.deepcopy(module)
    W = module.dequantize()
    linear = nn.Linear(*W.T.shape, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(W, requires_grad=False)
    linear.bias = copy.deepcopy(module.bias)
    return linear.train(module.training)


def next_tensor(module: nn.Module) -> Tensor:
    """Any tensor of a module: where it is, the adapter belongs."""
    return next(iter([*module.parameters(), *module.buffers()]))


def target_layers(model: nn.Module, targets: Collection[str] | str | None) -> dict[str, nn.Module]:
    """The linears to adapt, by path; ValueError for a name unmatched, TypeError if no linear."""
    if targets == "all-linear":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return {path: module for path, module in model.named_modules()
                if linear_widths(module) and module is not head
                and path.rpartition(".")[2] != "lm_head"}
    layers = default_layers(model) if targets is None else find_modules(model, targets)
    for path, module in layers.items():
        if not linear_widths(module):
            raise TypeError(f"LoRA adapts linear layers, but target {path!r} is a "
                            f"{type(module).__name__}; name the linears inside it")
    return layers


def default_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Queries and values, as in the paper; ValueError naming the linears of a model without."""
    try:
        return find_modules(model, ["q_proj", "v_proj"])
    except ValueError:
        names = {path.rpartition(".")[2]: None for path, module in model.named_modules()
                 if path and linear_widths(module)}
        raise ValueError(f"target_modules=None means q_proj and v_proj, and the model has not "
                         f"both; name some of its linears, {', '.join(names)}, or write "
                         f"target_modules='all-linear'") from None


def lora_adapters(model: nn.Module, config: LoraConfig, dtype: torch.dtype) -> AdapterSet:
    """One LoraLinear a target, not yet in place; ValueError if a layer is narrower than r."""
    layers = target_layers(model, config.target_modules)
    if not layers:
        raise ValueError("target_modules='all-linear' found no linear layer besides the head")
    for path, layer in layers.items():
        if config.r > min(linear_widths(layer)):
            raise ValueError(f"r must be at most {min(linear_widths(layer))}, the smaller width of "
                             f"{path} (beyond it B A has no further rank), got {config.r}")
    return {path: LoraLinear(layer, config, dtype) for path, layer in layers.items()}
