"""What all rows of a batch begin with, computed once.

    k, v of a shared token depend on the tokens before it, which are shared too

The rows of a fine-tuning batch often begin alike: a system turn, a chat template. Causal attention
gives those positions the same keys and values in every row, so the first row computes them and the
others read them. Loss and gradients are those of the whole batch, up to rounding; B - 1 of B times
the shared part of the work, and of the saved activations, is not done. (Dropout: the rows share the
shared part's mask.)
"""
import torch
from torch import Tensor, nn

from ..gpt import GPT, KVCache
from ..train import Batch, label_positions, labelled_logits


def shared_length(input_ids: Tensor, counted: Tensor) -> int:
    """How many positions the rows (B, T) have in common from the start, none of them `counted`."""
    alike = (input_ids == input_ids[:1]).all(0) & ~counted.any(0)                # (T,)
    return int(alike.cumprod(0).sum())


def shared_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """`labelled_logits` of a GPT, adapted or not: (N, V) and (N,), for less work."""
    input_ids = batch[0]                                                         # (B, T)
    counted, targets = label_positions(batch[1])
    (B, T), P = input_ids.shape, shared_length(input_ids, counted)
    if P == 0 or B == 1:
        return labelled_logits(model, batch)
    gpt = gpt_of(model)
    caches = [KVCache() for _ in gpt.model.layers]
    first = gpt.model(input_ids[:1], caches)                                     # (1, T, C)
    for cache in caches:
        cache.share(len(cache) - (T - P), B - 1)     # P positions, and a soft prompt before them
    others = gpt.model(input_ids[1:, P:], caches)                                # (B - 1, T - P, C)
    x = torch.cat([first[counted[:1]], others[counted[1:, P:]]])                 # (N, C)
    return gpt.lm_head(x), targets[counted]


def gpt_of(model: nn.Module) -> GPT:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
