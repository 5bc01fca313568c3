"""What will a fine-tuning run take, and does it fit? Exact shapes, nothing allocated.

    weights + quantization constants + adapter + gradients + optimizer + activations + logits

The model is built on the meta device and run there: the activations are the tensors that autograd
would save for this architecture, counted, not a rule of thumb. Peaks inside an operation, the
CUDA context and fragmentation come on top: leave about a GiB for them.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..gpt import GPT, GPTConfig
from ..measure import nbytes, saved_tensors, weight_bytes
from ..nf4 import NF4Linear
from ..peft_model import PeftModel
from ..recipes import RECIPES, adapt

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMIZERS = ("adamw", "sgd")
GiB = 2**30
MOST_TOKENS = 2**31         # a step; with GPTConfig's largest sizes, bytes still fit in 63 bits


@dataclass(frozen=True)
class Run:
    """A training run to be planned; ValueError for sizes that cannot be."""

    config: GPTConfig
    method: str = "lora"
    r: int = 8                      # rank (LoRA), virtual tokens (prompt, prefix), bottleneck
    batch: int = 1                  # sequences a step
    seq: int = 512                  # tokens a sequence
    dtype: str = "bf16"             # of the base; adapters are float32
    optimizer: str = "adamw"
    checkpointing: bool = False     # keep each layer's input only, recompute the rest

    def __post_init__(self):
        for name, value, known in (("method", self.method, RECIPES), ("dtype", self.dtype, DTYPES),
                                   ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        for name in ("r", "batch", "seq"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
            if getattr(self, name) > MOST_TOKENS:
                raise ValueError(f"{name} must be at most {MOST_TOKENS}, got {getattr(self, name)}")
        if self.batch * self.seq > MOST_TOKENS:
            raise ValueError(f"batch x seq must be at most {MOST_TOKENS} tokens, got "
                             f"{self.batch * self.seq}")
        if self.positions > self.config.max_position_embeddings:
            raise ValueError(f"seq, virtual tokens included, must be at most the model's "
                             f"{self.config.max_position_embeddings} positions, "
                             f"got {self.positions}")

    @property
    def positions(self) -> int:
        """Of a sequence: its tokens, and the virtual ones in front of them."""
        config = RECIPES[self.method].config
        return self.seq + getattr(config and config(self.r), "num_virtual_tokens", 0)


def meta_model(run: Run, layers: int) -> nn.Module:
    """The adapted model with `layers` of its layers, on the meta device."""
    with torch.device("meta"):
        base = GPT(replace(run.config, num_hidden_layers=layers)).to(DTYPES[run.dtype])
    return adapt(base, run.method, run.r)


class FusedAttention(TorchFunctionMode):
    """On the meta device, attention as the fused kernels do it: what they save is Q, K, V, the
    output and one number a row, not the (T, S) probabilities."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **({} if kwargs is None else kwargs))
        q, k, v, mask = args
        mask = None if mask is None else mask.to(q.dtype)          # (T, S), as the kernel adds it
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(q, k, v, attn_mask=mask)[0]


def saved_bytes(run: Run, model: nn.Module) -> tuple[int, int, int]:
    """(activations, logits) that autograd keeps, and the input of a layer."""
    gpt, inputs, hidden = getattr(model, "base_model", model), [], []
    ids = torch.zeros(run.batch, run.seq, dtype=torch.long, device="meta")
    gpt.model.layers[-1].register_forward_pre_hook(lambda _, args: inputs.append(args[0].nbytes))

    def body() -> None:
        with FusedAttention():
            hidden.append(gpt.model(ids))                                          # (B, T, C)

    def head() -> None:
        logits = gpt.lm_head(hidden[0])                                            # (B, T, V)
        F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    below, _ = saved_tensors(model, body)
    above, _ = saved_tensors(model, head)
    held = {t.untyped_storage()._cdata for t in [*below, *hidden]}
    logits = nbytes(t for t in above if t.is_floating_point() and t.ndim
                    and t.untyped_storage()._cdata not in held)
    return nbytes([*below, *above]) - logits, logits, inputs[0]


def parts_of(run: Run, layers: int) -> dict[str, int]:
    """`plan` of the model with that many layers."""
    model = meta_model(run, layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    adapter = sum(p.nbytes for p in trained) if isinstance(model, PeftModel) else 0
    quantized = [m for m in model.modules() if isinstance(m, NF4Linear)]
    constants = sum(b.nbytes for m in quantized for name, b in m.named_buffers()
                    if name != "packed")
    weights = weight_bytes(model) - adapter - constants
    activations, logits, layer_input = saved_bytes(run, model)
    return {"weights": weights, "quantization constants": constants, "adapter": adapter,
            "gradients": sum(p.nbytes for p in trained),
            "optimizer": sum(optimizer_bytes(p, run.optimizer) for p in trained),
            "activations": activations, "logits": logits, "layer input": layer_input}


def plan(run: Run) -> dict[str, int]:
    """Bytes by kind. ValueError or TypeError as get_peft_model raises them.

    Every layer takes the same but the first, below which an adapter may have nothing to send
    gradients to: two layers and a third give every number of them.
    """
    L = run.config.num_hidden_layers
    parts = parts_of(run, min(L, 2))
    alone, layer_input = parts["activations"], parts.pop("layer input")       # of one layer
    if L > 1:
        three = parts_of(run, 3)
        layer = {kind: three[kind] - parts[kind] for kind in parts}
        alone -= layer["activations"]
        parts = {kind: parts[kind] + (L - 2) * layer[kind] for kind in parts}
    if run.checkpointing:                               # one layer at a time is recomputed
        parts["activations"] = alone + L * layer_input
    return parts


def optimizer_bytes(p: torch.Tensor, optimizer: str) -> int:
    """AdamW: two float32 moments, and a float32 master copy of a 16-bit weight. SGD: nothing."""
    if optimizer == "sgd":
        return 0
    return (8 if p.dtype == torch.float32 else 12) * p.numel()


def advice(run: Run, limit: float) -> list[str]:
    """What to change, each with what the run would then take, most faithful to the plan first."""
    changes = [("gradient checkpointing", dict(checkpointing=True)),
               ("QLoRA in place of " + run.method, dict(method="qlora", r=min(run.r, 16))),
               ("QLoRA with gradient checkpointing", dict(method="qlora", r=min(run.r, 16),
                                                          checkpointing=True)),
               ("batch 1, half the tokens, checkpointing", dict(batch=1, seq=max(run.seq // 2, 1),
                                                                checkpointing=True))]
    lines = []
    for name, change in changes:
        other = replace(run, **change)
        if other != run:
            total = sum(plan(other).values())
            verdict = "fits" if total <= limit else "does not fit either"
            lines.append(f"{name}: {total / GiB:.2f} GiB, {verdict}")
    return lines
