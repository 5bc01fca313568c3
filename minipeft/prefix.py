"""Prefix tuning: trained keys and values stand in front of the text's own, in every layer.

    attention(Q, [P_K, K], [P_V, V])             Li and Liang 2021, section 4.2

    P_K, P_V (P, d_kv) in each of L layers, d_kv = H_kv D: 2 L P d_kv numbers. The keys carry no
    rotary positions; the text stands at P, P + 1, ... as in HuggingFace PEFT.

With `prefix_projection` (section 4.3) they are the output of an MLP, tanh(E W1 + b1) W2 + b2, which
is trained in their place and folded away on save.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .adapter import Adapter, AdapterSet, TaskType, check_choice, check_count, check_task_type
from .gpt import GPT, KVCache, check_length, require_gpt, sample_token_ids
from .hf_names import hf_keywords


@hf_keywords
@dataclass(frozen=True)
class PrefixTuningConfig:
    """HuggingFace PEFT's names, and `prefix_init`; ValueError for values out of range."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    num_virtual_tokens: int                  # P
    prefix_projection: bool = False          # train an MLP that makes the prefix
    encoder_hidden_size: int | None = None   # its hidden width; None: d_kv
    prefix_init: str = "RANDOM"              # N(0, 1); SAMPLE_VOCAB: keys and values of real tokens
    task_type: TaskType | str | None = None
    inference_mode: bool = False

    def file_fields(self, model: GPT) -> dict:
        """What HuggingFace PEFT needs to know besides; its token_dim is d_kv."""
        sizes = model.config
        return dict(task_type="CAUSAL_LM", num_transformer_submodules=1,
                    num_layers=sizes.num_hidden_layers, num_attention_heads=sizes.kv_heads,
                    token_dim=sizes.kv_heads * sizes.head_dim)

    def __post_init__(self):
        check_count("num_virtual_tokens", self.num_virtual_tokens)
        if self.encoder_hidden_size is not None:
            check_count("encoder_hidden_size", self.encoder_hidden_size)
        check_choice("prefix_projection", self.prefix_projection, (True, False))
        check_choice("prefix_init", self.prefix_init, ("RANDOM", "SAMPLE_VOCAB"))
        check_choice("inference_mode", self.inference_mode, (True, False))
        check_task_type(self.task_type)
        if self.prefix_projection and self.prefix_init != "RANDOM":
            raise ValueError("prefix_init='SAMPLE_VOCAB' sets the prefix itself, which "
                             "prefix_projection=True computes; choose one of them")


class Prefix(nn.Module):
    """The keys and values of one layer as such: () to (P, 2 d_kv)."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.weight


class PrefixTrunk(nn.Module):
    """tanh(E W1 + b1), shared by all layers: () to (P, hidden). E is (P, d_kv), as in HF PEFT."""

    def __init__(self, P: int, d_kv: int, hidden: int, **where):
        super().__init__()
        self.embedding = nn.Embedding(P, d_kv, **where)
        self.linear = nn.Linear(d_kv, hidden, **where)

    def forward(self) -> Tensor:
        return torch.tanh(self.linear(self.embedding.weight))


class ProjectedPrefix(nn.Module):
    """trunk() W2 + b2: the columns of W2 that make one layer's keys and values."""

    def __init__(self, trunk: PrefixTrunk, d_kv: int, **where):
        super().__init__()
        self.trunk = trunk
        self.linear = nn.Linear(trunk.linear.out_features, 2 * d_kv, **where)

    def forward(self) -> Tensor:
        return self.linear(self.trunk())


class PrefixAttention(Adapter):
    """base_layer(x) with P keys and values more in front of the text's."""

    cannot_merge = "its keys and values are more positions, not other weights"

    def __init__(self, base_layer: nn.Module, prefix: nn.Module):
        super().__init__(base_layer)
        self.prefix = prefix
        self.kv_heads = base_layer.config.kv_heads

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """P_K and P_V by head, (1, H_kv, P, D) each."""
        k, v = (half.unflatten(-1, (self.kv_heads, -1)).transpose(0, 1)[None]
                for half in self.prefix().chunk(2, dim=-1))
        return k, v

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.base_layer(x, cache=cache, prefix_kv=self.keys_and_values())


@torch.no_grad()
def keys_and_values_of_tokens(model: GPT, P: int) -> list[Tensor]:
    """What P random tokens leave in the cache of each layer: L tensors (P, 2 d_kv)."""
    caches = [KVCache() for _ in model.model.layers]
    ids = sample_token_ids(P, model.config.vocab_size).to(model.model.norm.weight.device)
    model.model(ids[None], caches)
    return [torch.cat([kv[0].transpose(0, 1).flatten(1) for kv in (cache.k, cache.v)], dim=1)
            for cache in caches]


def initial_prefixes(model: GPT, config: PrefixTuningConfig, dtype: torch.dtype) -> list[nn.Module]:
    """One module a layer that gives its (P, 2 d_kv)."""
    P, sizes = config.num_virtual_tokens, model.config
    d_kv, L = sizes.kv_heads * sizes.head_dim, sizes.num_hidden_layers
    where = dict(device=model.model.norm.weight.device, dtype=dtype)
    if config.prefix_projection:
        hidden = d_kv if config.encoder_hidden_size is None else config.encoder_hidden_size
        trunk = PrefixTrunk(P, d_kv, hidden, **where)
        return [ProjectedPrefix(trunk, d_kv, **where) for _ in range(L)]
    if config.prefix_init == "SAMPLE_VOCAB" and where["device"].type != "meta":
        return [Prefix(kv.to(dtype)) for kv in keys_and_values_of_tokens(model, P)]
    return [Prefix(torch.randn(P, 2 * d_kv, **where)) for _ in range(L)]


def prefix_adapters(model: nn.Module, config: PrefixTuningConfig, dtype: torch.dtype) -> AdapterSet:
    """One PrefixAttention a layer, not yet in place."""
    require_gpt(model, "prefix tuning")
    check_length(config.num_virtual_tokens, model.config)
    paths = [f"model.layers.{i}.self_attn" for i in range(model.config.num_hidden_layers)]
    return {path: PrefixAttention(model.get_submodule(path), prefix)
            for path, prefix in zip(paths, initial_prefixes(model, config, dtype))}


def prefix_tensors(adapters: AdapterSet) -> dict[str, Tensor]:
    """As in HuggingFace PEFT's files: one tensor (P, L 2 d_kv), by layer, keys then values."""
    return {"prompt_embeddings": torch.cat([a.prefix() for a in adapters.values()], dim=1)}


@torch.no_grad()
def load_prefix_tensors(adapters: AdapterSet, tensors: dict[str, Tensor]) -> None:
    """Undo prefix_tensors; what a file holds is the prefix itself, without the MLP that made it."""
    parts = tensors["prompt_embeddings"].chunk(len(adapters), dim=1)
    for adapter, part in zip(adapters.values(), parts):
        adapter.prefix.weight.copy_(part)
