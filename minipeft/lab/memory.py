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
        recipe = RECIPES[self.method]
        virtual = getattr(recipe.config and recipe.config(self.r), "num_virtual_tokens", 0)
        if self.seq + virtual > self.config.max_position_embeddings:
            raise ValueError(f"seq, virtual tokens included, must be at most the model's "
                             f"{self.config.max_position_embeddings} positions, "
                             f"got {self.seq + virtual}")


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


def saved_bytes(run: Run, layers: int) -> tuple[int, int, int]:
    """(activations, logits) that autograd keeps with that many layers, and the input of a layer."""
    model, inputs = meta_model(run, layers), []
    ids = torch.zeros(run.batch, run.seq, dtype=torch.long, device="meta")
    last = getattr(model, "base_model", model).model.layers[-1]
    last.register_forward_pre_hook(lambda _, args: inputs.append(args[0].nbytes))

    def forward() -> torch.Tensor:
        with FusedAttention():
            logits = model(ids)                                                    # (B, T, V)
            F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        return logits

    saved, logits = saved_tensors(model, forward)
    as_wide_as_the_vocabulary = [t for t in saved if t.shape[-1:] == logits.shape[-1:]]
    logits_bytes = nbytes(as_wide_as_the_vocabulary)
    return nbytes(saved) - logits_bytes, logits_bytes, inputs[0]


def activation_bytes(run: Run) -> tuple[int, int]:
    """(activations, logits) of the whole model. Every layer saves the same but the first, below
    which an adapter may have nothing to send gradients to."""
    L = run.config.num_hidden_layers
    (two, logits, layer_input), (three, *_) = saved_bytes(run, 2), saved_bytes(run, 3)
    layer = three - two
    rest = two - 2 * layer
    if not run.checkpointing:
        return rest + L * layer, logits
    return rest + layer + L * layer_input, logits      # one layer at a time is recomputed


def plan(run: Run) -> dict[str, int]:
    """Bytes by kind. ValueError or TypeError as get_peft_model raises them."""
    model = meta_model(run, run.config.num_hidden_layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    adapter = sum(p.nbytes for p in trained) if isinstance(model, PeftModel) else 0
    layers = [m for m in model.modules() if isinstance(m, NF4Linear)]
    constants = sum(b.nbytes for m in layers for name, b in m.named_buffers() if name != "packed")
    activations, logits = activation_bytes(run)
    return {"weights": weight_bytes(model) - adapter - constants,
            "quantization constants": constants, "adapter": adapter,
            "gradients": sum(p.nbytes for p in trained),
            "optimizer": sum(optimizer_bytes(p, run.optimizer) for p in trained),
            "activations": activations, "logits": logits}


def optimizer_bytes(p: torch.Tensor, optimizer: str) -> int:
    """AdamW: two float32 moments, and a float32 master copy of a 16-bit weight. SGD: nothing."""
    if optimizer == "sgd":
        return 0
    return (8 if p.dtype == torch.float32 else 12) * p.numel()


def advice(run: Run, limit: int) -> list[str]:
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
