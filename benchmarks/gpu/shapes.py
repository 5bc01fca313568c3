"""Random models of exact shapes, made one layer at a time, and the clock that times them."""
import time
from collections.abc import Callable

import torch
from torch import nn

from minipeft import GPT, GPTConfig, quantize_model
from minipeft.gpt import DecoderLayer
from minipeft.measure import summary


@torch.no_grad()
def materialise(module: nn.Module, where: torch.device) -> None:
    """Memory and values for a module of the meta device: N(0, 1 / in), and ones for the norms."""
    module.to_empty(device=where)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(std=parameter.shape[1] ** -0.5)


def random_gpt(config: GPTConfig, dtype: torch.dtype, where: torch.device, four_bit: bool = False,
               double_quant: bool = True) -> GPT:
    """A GPT of these shapes; with `four_bit`, never more than one layer of it is in 16 bits.

    As quantize_model leaves it, embedding, norms and head stay in `dtype`.
    """
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    decoder = model.model
    for module in (decoder.embed_tokens, *decoder.layers, decoder.norm, model.lm_head):
        materialise(module, where)
        if four_bit and isinstance(module, DecoderLayer):
            quantize_model(module, double_quant=double_quant)
    model.tie_weights()
    return model


def seconds(call: Callable, where: torch.device, repeats: int = 1) -> float:
    """Of one call, as the mean of `repeats` in a row: CUDA events on a GPU, else the clock."""
    if where.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def in_turn(calls: dict[str, Callable], rounds: int, where: torch.device, repeats: int = 1,
            warmup: int = 3) -> dict[str, dict[str, float]]:
    """Median and quartiles of each call, one of each a round, so that a drift hits all alike."""
    found = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            taken = seconds(call, where, repeats)
            if number >= warmup:
                found[name].append(taken)
    return {name: summary(values).as_dict() for name, values in found.items()}


def milliseconds(timing: dict[str, float]) -> tuple[str, str]:
    """(median, quartiles), for a table."""
    return (f"{1e3 * timing['median']:.3f}",
            f"{1e3 * timing['low']:.3f} - {1e3 * timing['high']:.3f}")
