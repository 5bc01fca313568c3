"""The same small model on both sides."""
import copy
import warnings
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from minipeft import GPT, GPTConfig

SIZES = GPTConfig(vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                  num_attention_heads=4, max_position_embeddings=64, rope_theta=100.0)
MODELS = {"heads, untied": SIZES,
          "grouped heads, untied": replace(SIZES, num_key_value_heads=2),
          "heads, tied": replace(SIZES, tie_word_embeddings=True),
          "grouped heads, tied": replace(SIZES, num_key_value_heads=2, tie_word_embeddings=True)}
IDS = torch.randint(0, SIZES.vocab_size, (3, 7), generator=torch.Generator().manual_seed(1))
UNEQUAL = [[5], *(row[:n] for row, n in zip(IDS, (4, 7, 2)))]        # rows of token ids


def pair(config: GPTConfig) -> tuple[GPT, LlamaForCausalLM]:
    """A random GPT and the LlamaForCausalLM of the same weights, both in evaluation mode."""
    torch.manual_seed(0)
    ours = GPT(config)
    theirs = LlamaForCausalLM(LlamaConfig(**vars(config)))
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def to_dtype(ours, theirs, dtype):
    """Both in another dtype. `.to(bfloat16)` would also round transformers' rotary frequencies,
    which its from_pretrained(dtype=...) keeps in float32, as GPT does."""
    frequencies = theirs.model.rotary_emb.inv_freq.clone()
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    theirs.model.rotary_emb.inv_freq = frequencies
    return ours, theirs


def twins(model):
    return copy.deepcopy(model), copy.deepcopy(model)


def cross_entropy(logits, ids=IDS):
    """Mean -log p(next token); logits (B, P + T, V) or (B, T, V)."""
    T = ids.shape[1]
    return F.cross_entropy(logits[:, -T:-1].flatten(0, 1), ids[:, 1:].flatten())


def unexpected(caught) -> list[str]:
    """Messages of warnings that speak of the adapter, not of transformers' own deprecations."""
    return [str(w.message) for w in caught if "is_gradient_checkpointing" not in str(w.message)]


def loads_quietly(load, *args, **kwargs):
    """The result of load(...), which must not warn."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = load(*args, **kwargs)
    assert unexpected(caught) == []
    return result
