"""Prompt tuning: trained vectors stand in front of the text's embeddings.

    x = [p_1 ... p_P, embed(ids)]            Lester et al. 2021, section 2

    p (P, C) trainable: P * C numbers, whatever the model's depth. The text then stands at positions
    P, P + 1, ...; the model drops the P outputs, so logits keep their shape (B, T, V).
"""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .adapter import Adapter, AdapterSet, TaskType, check_choice, check_count, check_task_type
from .gpt import GPT, check_length, check_token_ids, require_gpt, sample_token_ids
from .hf_names import hf_keywords


@hf_keywords
@dataclass(frozen=True)
class PromptTuningConfig:
    """HuggingFace PEFT's names; ValueError for values out of range."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    num_virtual_tokens: int                        # P
    prompt_tuning_init: str = "RANDOM"             # or SAMPLE_VOCAB, or TEXT
    prompt_tuning_init_text: str | None = None     # for TEXT; cut or repeated to P tokens
    tokenizer: Callable | None = field(default=None, compare=False, repr=False)   # text to ids
    task_type: TaskType | str | None = None
    inference_mode: bool = False

    def file_fields(self, model: GPT) -> dict:
        """What HuggingFace PEFT needs to know besides."""
        return dict(task_type="CAUSAL_LM", num_transformer_submodules=1,
                    num_layers=model.config.num_hidden_layers, token_dim=model.config.hidden_size,
                    num_attention_heads=model.config.num_attention_heads)

    def __post_init__(self):
        check_count("num_virtual_tokens", self.num_virtual_tokens)
        check_choice("prompt_tuning_init", self.prompt_tuning_init,
                     ("RANDOM", "SAMPLE_VOCAB", "TEXT"))
        check_choice("inference_mode", self.inference_mode, (True, False))
        check_task_type(self.task_type)
        text = self.prompt_tuning_init_text and self.tokenizer
        if self.prompt_tuning_init == "TEXT" and not text:
            raise ValueError("prompt_tuning_init='TEXT' wants prompt_tuning_init_text and a "
                             "tokenizer (a function from a text to its token ids)")


class SoftPrompt(Adapter):
    """[p, base_layer(ids)]: (B, T) ids to (B, P + T, C) vectors."""

    cannot_merge = "its vectors are more positions, not other weights"

    def __init__(self, base_layer: nn.Embedding, prompt: Tensor):
        super().__init__(base_layer)
        self.prompt = nn.Parameter(prompt)                                   # (P, C)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.base_layer(input_ids)                                       # (B, T, C)
        prompt = self.prompt.to(x.dtype).expand(len(x), -1, -1)              # (B, P, C)
        return torch.cat([prompt, x], dim=1)                                 # (B, P + T, C)


def initial_prompt(model: GPT, config: PromptTuningConfig, dtype: torch.dtype) -> Tensor:
    """p at step 0, (P, C).

    RANDOM draws at the embedding's own standard deviation. HuggingFace PEFT draws N(0, 1), which is
    50 times as loud as the tokens of a model whose embeddings were drawn at 0.02.
    """
    weight = model.get_parameter("model.embed_tokens.weight").detach()
    P, C = config.num_virtual_tokens, weight.shape[1]
    if weight.is_meta:
        return torch.empty(P, C, dtype=dtype, device="meta")
    if config.prompt_tuning_init == "RANDOM":
        prompt = torch.randn(P, C, device=weight.device) * weight.float().std()
    elif config.prompt_tuning_init == "SAMPLE_VOCAB":
        prompt = weight[sample_token_ids(P, model.config.vocab_size).to(weight.device)]
    else:
        ids = torch.tensor([list(config.tokenizer(config.prompt_tuning_init_text))])
        check_token_ids(ids, model.config.vocab_size)
        prompt = weight[ids[0].repeat(-(-P // ids.shape[1]))[:P].to(weight.device)]
    return prompt.to(dtype, copy=True)


def prompt_adapters(model: nn.Module, config: PromptTuningConfig, dtype: torch.dtype) -> AdapterSet:
    """One SoftPrompt behind embed_tokens, not yet in place."""
    require_gpt(model, "prompt tuning")
    check_length(config.num_virtual_tokens, model.config)
    path = "model.embed_tokens"
    return {path: SoftPrompt(model.get_submodule(path), initial_prompt(model, config, dtype))}


def prompt_tensors(adapters: AdapterSet) -> dict[str, Tensor]:
    """As in HuggingFace PEFT's files: one tensor (P, C)."""
    (adapter,) = adapters.values()
    return {"prompt_embeddings": adapter.prompt}


@torch.no_grad()
def load_prompt_tensors(adapters: AdapterSet, tensors: dict[str, Tensor]) -> None:
    prompt_tensors(adapters)["prompt_embeddings"].copy_(tensors["prompt_embeddings"])
