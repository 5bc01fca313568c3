"""How each method is used here, one line a method; whoever needs a list of methods reads this one.

    RECIPES["lora"].config(8)      what get_peft_model wants, at rank 8
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .adapter import Adapter, check_choice
from .houlsby import HoulsbyConfig
from .lora import LoraConfig
from .nf4 import NF4Linear, quantize_model
from .peft_model import get_peft_model
from .prefix import PrefixTuningConfig
from .prompt import PromptTuningConfig


@dataclass(frozen=True)
class Recipe:
    label: str                                   # in tables and pictures
    config: Callable[[int], object] | None       # by size; None: every weight is trained
    size: int | None = None                      # r of LoRA, P virtual tokens, or bottleneck m
    grid: tuple[float, ...] = ()                 # learning rates that the tiny GPT's sweep tries
    llm_size: int | None = None                  # size and
    llm_lr: float = 1e-3                         # rate on SmolLM2, which its sweep has chosen
    four_bit: bool = False                       # the base in NF4 with double quantization


def lora(r: int) -> LoraConfig:
    return LoraConfig(r, 2 * r, target_modules="all-linear", task_type="CAUSAL_LM")


def prompt(P: int) -> PromptTuningConfig:
    return PromptTuningConfig(P, "SAMPLE_VOCAB", task_type="CAUSAL_LM")


def prefix(P: int) -> PrefixTuningConfig:
    return PrefixTuningConfig(P, prefix_init="SAMPLE_VOCAB", task_type="CAUSAL_LM")


def houlsby(m: int) -> HoulsbyConfig:
    return HoulsbyConfig(m, task_type="CAUSAL_LM")


# Rates in quarters of a decade: the languages go from most bits stored to none within one notch
_ALL = (3.2e-5, 5.6e-5, 1e-4, 1.8e-4, 3.2e-4, 5.6e-4, 1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 1e-2)
_WEIGHTS = (3.2e-4, 5.6e-4, 1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 1e-2, 1.8e-2, 3.2e-2, 5.6e-2)
_VECTORS = (1e-2, 1.8e-2, 3.2e-2, 5.6e-2, 0.1, 0.18, 0.32, 0.56, 1.0, 1.8)      # of virtual tokens
RECIPES = {
    "full": Recipe("FFT", None, None, _ALL, None, 5e-5),
    "lora": Recipe("LoRA", lora, 8, _WEIGHTS, 8, 3e-3),
    "qlora": Recipe("QLoRA", lora, 8, _WEIGHTS, 8, 3e-3, four_bit=True),
    "prompt": Recipe("Prompt", prompt, 16, _VECTORS, 20, 5e-2),
    "prefix": Recipe("Prefix", prefix, 16, _VECTORS, 20, 5e-2),
    "houlsby": Recipe("Houlsby", houlsby, 16, _WEIGHTS, 32, 3e-3),
}


def adapt(model: nn.Module, method: str, size: int | None = None,
          dtype: torch.dtype | None = None) -> nn.Module:
    """`model` made ready to be trained by this method, in place.

    size: of the adapter; None: the recipe's
    dtype: of the frozen weights that are not in 4 bits; None: as they are

    ValueError for an unknown method or a size that no model can have, or full fine-tuning of a
    model that is not whole, with the model as it was.
    """
    check_choice("method", method, tuple(RECIPES))
    recipe = RECIPES[method]
    if recipe.config is None:
        check_trains_whole(model)
    config = recipe.config and recipe.config(recipe.size if size is None else size)
    if recipe.four_bit and not in_four_bits(model):
        quantize_model(model)                    # before they are rounded to `dtype`
    model.to(dtype)
    return get_peft_model(model, config) if config else model


def in_four_bits(model: nn.Module) -> bool:
    return any(isinstance(module, NF4Linear) for module in model.modules())


def check_trains_whole(model: nn.Module) -> None:
    """ValueError for a model of which full fine-tuning would train a part, or nothing."""
    for path, module in model.named_modules():
        if isinstance(module, Adapter | NF4Linear):
            kind = "adapted" if isinstance(module, Adapter) else "in 4 bits"
            raise ValueError(f"full fine-tuning trains every weight, but {path} is {kind}; take "
                             f"the base model as it was loaded")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(f"full fine-tuning trains every weight, but {name} is frozen; call "
                             f"model.requires_grad_(True) first")
