"""Counts and bytes at real models' shapes, exact, without a weight in memory."""
import functools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ...gpt import GPT, GPTConfig
from ...lab.memory import Run, plan
from ...measure import weight_bytes
from ...nf4 import quantize_model
from ...peft_model import get_peft_model

GB, GiB = 1e9, 2**30


def meta_gpt(preset: str, **changes) -> GPT:
    with torch.device("meta"):
        return GPT(replace(GPTConfig.preset(preset), **changes)).to(torch.bfloat16)


@functools.cache
def parameters(preset: str) -> int:
    return sum(p.numel() for p in meta_gpt(preset).parameters())


@functools.cache
def trained(preset: str, config) -> int:
    """How many numbers this method trains."""
    return get_peft_model(meta_gpt(preset), config).get_nb_trainable_parameters()[0]


def share(preset: str, config) -> float:
    """Percent of all, the adapter's own counted too, as print_trainable_parameters has it."""
    n = trained(preset, config)
    return 100 * n / (parameters(preset) + n)


def largest_below_one_percent(preset: str, one_rank: int) -> int:
    """The largest rank whose n = r * one_rank numbers are below 1 % of all, the adapter's own
    counted too: 100 n < N + n."""
    return (parameters(preset) - 1) // (99 * one_rank)


@functools.cache
def quantized_bytes(preset: str, double_quant: bool = True) -> int:
    """The model with its linears in NF4; embeddings, norms and head in bfloat16."""
    return weight_bytes(quantize_model(meta_gpt(preset), double_quant=double_quant))


@functools.cache
def planned(preset: str, method: str, **sizes) -> int:
    """Bytes of a whole training run, `minipeft memory`'s count."""
    return sum(plan(Run(GPTConfig.preset(preset), method, **sizes)).values())


@functools.cache
def training_flops(preset: str, config, tokens: int = 512) -> int:
    """Operations of one forward and backward pass; layers after the second cost the same."""
    two, three = (flops_of(preset, config, layers, tokens) for layers in (2, 3))
    return two + (GPTConfig.preset(preset).num_hidden_layers - 2) * (three - two)


def flops_of(preset: str, config, layers: int, tokens: int) -> int:
    model = meta_gpt(preset, num_hidden_layers=layers).float()
    model = model if config is None else get_peft_model(model, config)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    return counter.get_total_flops()
