"""Real weights as 4-bit codes see them: their histogram, and what each level of a code gets.

    levels()["codes"][0]["levels"]        [{"value": -1.0, "share": ...}, ...], of NF4
"""
import torch
from torch import Tensor, nn

from ...nf4 import FP4_CODE, INT4_CODE, NF4_CODE, dequantize_nf4, quantize_nf4
from ...nf4.reference import inverse, to_blocks
from ...tiny_world.pretrain import load_base

try:
    from ...llm import smollm2
except ImportError:                 # it wants the package tokenizers
    smollm2 = None

BLOCKSIZE = 64
BINS = 160                          # of the histogram, from -1 to 1
EVERY = 5                           # layers of SmolLM2: all of them take longer, and look alike
CODES = {
    "NF4": (NF4_CODE, "quantiles of a normal distribution (QLoRA, appendix E)"),
    "INT4": (INT4_CODE, "the integers -8 to 7, over 7; the first, drawn hollow, is out of reach"),
    "FP4": (FP4_CODE, "bitsandbytes' table for quant_type fp4: a sign bit, two exponent bits, one "
                      "mantissa bit, so that zero stands twice, as -0 and 0; the FP4 of the OCP "
                      "standard (E2M1) has 1/12 = 0.083 where this one has 1/192 = 0.0052"),
}


def levels() -> dict:
    """source, n weights, the histogram's shares, and for each code its levels and its error."""
    source, layers = real_layers()
    weights = [module.weight.detach() for module in layers.modules()
               if isinstance(module, nn.Linear)]
    n = sum(weight.numel() for weight in weights)
    total = sum(squared(weight) for weight in weights)
    bins = sum(histogram(weight) for weight in weights)
    return dict(source=source, n=n, matrices=len(weights), blocksize=BLOCKSIZE,
                histogram=(bins / n).tolist(),
                codes=[dict(name=name, about=about, **coded(weights, code, n, total))
                       for name, (code, about) in CODES.items()])


def real_layers() -> tuple[str, nn.Module]:
    """Layers of SmolLM2 where it is installed, else of the tiny GPT; and what to call them."""
    try:
        if smollm2 is not None:
            layers = smollm2.load()[0].model.layers
            return (f"every {EVERY}th of the {len(layers)} layers of SmolLM2-135M-Instruct, as its "
                    f"file stores them: in 4 bits of a format whose 16 steps run from the smallest "
                    f"to the largest of every 32 weights, which leaves small waves in the picture",
                    layers[::EVERY])
    except ImportError:
        pass                        # its weights are not installed
    return "all layers of the tiny GPT of seed 0, 16-bit floats", load_base(0).model.layers


def squared(values: Tensor) -> float:
    return values.double().square().sum().item()


def histogram(weight: Tensor) -> Tensor:
    """How many weights, over the largest magnitude of their block, are in each bin. (BINS,)"""
    blocks = to_blocks(weight.flatten().float(), BLOCKSIZE)             # (N, BLOCKSIZE)
    scaled = blocks * inverse(blocks.abs().amax(dim=1))[:, None]
    return torch.histc(scaled.flatten()[:weight.numel()], BINS, -1, 1).double()


def coded(weights: list[Tensor], code: Tensor, n: int, total: float) -> dict:
    """The share of the weights that each level gets; error: sum (w^ - w)^2 / sum w^2."""
    counts, error = torch.zeros(len(code), dtype=torch.int64), 0.0
    for weight in weights:
        packed, state = quantize_nf4(weight, BLOCKSIZE, code=code)
        q = torch.stack([packed >> 4, packed & 15]).flatten()
        counts += q.bincount(minlength=len(code))
        counts[q[-1]] -= weight.numel() % 2                     # the half that pads an odd n
        error += squared(dequantize_nf4(packed, state) - weight)
    return dict(levels=[dict(value=value, share=count / n)
                        for value, count in zip(code.tolist(), counts.tolist())],
                error=error / total)
