"""Houlsby adapters: a bottleneck MLP behind attention and behind the MLP of every layer.

    h = f(x);    y = h + W_up g(W_down h + b_down) + b_up         Houlsby et al. 2019, section 2.1

    W_down (m, C), W_up (C, m): 2 m C + m + C trainable numbers an adapter, two adapters a layer.
    Both are drawn near zero, so that the adapted model starts near the base. g stands between them,
    so no single matrix does what they do: the adapter cannot be merged.
"""
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import (Adapter, AdapterSet, TaskType, check_choice, check_count, check_task_type,
                      find_modules)
from .gpt import require_gpt
from .hf_names import hf_keywords

NON_LINEARITIES = {"gelu": F.gelu, "relu": F.relu, "swish": F.silu}


@hf_keywords
@dataclass(frozen=True)
class HoulsbyConfig:
    """ValueError for values out of range. (HuggingFace PEFT has no bottleneck adapters.)"""

    peft_type: ClassVar[str] = "HOULSBY"
    bottleneck_size: int                # m
    non_linearity: str = "gelu"         # g: gelu, relu or swish
    init_std: float = 0.01              # both matrices, cut at 2 standard deviations (section 3.6)
    task_type: TaskType | str | None = None
    inference_mode: bool = False

    def file_fields(self, model: nn.Module) -> dict:
        return {}

    def __post_init__(self):
        check_count("bottleneck_size", self.bottleneck_size)
        check_choice("non_linearity", self.non_linearity, tuple(NON_LINEARITIES))
        check_choice("inference_mode", self.inference_mode, (True, False))
        check_task_type(self.task_type)
        if not (isinstance(self.init_std, int | float) and 0 < self.init_std < math.inf):
            raise ValueError(f"init_std must be positive (from 0 nothing trains), "
                             f"got {self.init_std!r}")


class Bottleneck(Adapter):
    """y = h + W_up g(W_down h + b_down) + b_up with h = base_layer(x);  all (B, T, C)."""

    cannot_merge = "a non-linearity stands between its two matrices"

    def __init__(self, base_layer: nn.Module, width: int, config: HoulsbyConfig, **where):
        super().__init__(base_layer)
        self.non_linearity = config.non_linearity
        self.adapter_down = nn.Linear(width, config.bottleneck_size, **where)
        self.adapter_up = nn.Linear(config.bottleneck_size, width, **where)
        for linear in (self.adapter_down, self.adapter_up):
            std = config.init_std
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)

    def forward(self, *args, **kwargs) -> Tensor:
        h = self.base_layer(*args, **kwargs)
        z = self.adapter_down(h.to(self.adapter_down.weight.dtype))          # (B, T, m)
        z = NON_LINEARITIES[self.non_linearity](z)
        return (h + self.adapter_up(z)).to(h.dtype)


def houlsby_adapters(model: nn.Module, config: HoulsbyConfig, dtype: torch.dtype) -> AdapterSet:
    """A Bottleneck behind every self_attn and mlp, not yet in place; TypeError if not a GPT."""
    require_gpt(model, "Houlsby's method")
    layers = find_modules(model, ["self_attn", "mlp"])
    width = model.config.hidden_size
    where = dict(device=model.model.norm.weight.device, dtype=dtype)
    if config.bottleneck_size > width:
        raise ValueError(f"bottleneck_size must be at most the model's width {width}, "
                         f"got {config.bottleneck_size}")
    return {path: Bottleneck(layer, width, config, **where) for path, layer in layers.items()}
