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
from ..houlsby import HoulsbyConfig
from ..lora import LoraConfig
from ..measure import nbytes
from ..nf4 import NF4Linear, quantize_model
from ..peft_model import get_peft_model
from ..prefix import PrefixTuningConfig
from ..prompt import PromptTuningConfig

METHODS = ("full", "lora", "qlora", "prompt", "prefix", "houlsby")
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
        for name, value, known in (("method", self.method, METHODS), ("dtype", self.dtype, DTYPES),
                                   ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        for name in ("r", "batch", "seq"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        virtual = self.r if self.method in ("prompt", "prefix") else 0
        if self.seq + virtual > self.config.max_position_embeddings:
            raise ValueError(f"seq, virtual tokens included, must be at most the model's "
                             f"{self.config.max_position_embeddings} positions, "
                             f"got {self.seq + virtual}")


def adapter_config(run: Run):
    """The method's config; LoRA on all linears. None: full fine-tuning."""
    return {"full": lambda: None,
            "lora": lambda: LoraConfig(r=run.r, target_modules="all-linear"),
            "qlora": lambda: LoraConfig(r=run.r, target_modules="all-linear"),
            "prompt": lambda: PromptTuningConfig(run.r),
            "prefix": lambda: PrefixTuningConfig(run.r),
            "houlsby": lambda: HoulsbyConfig(run.r)}[run.method]()


def meta_model(run: Run, layers: int) -> nn.Module:
    """The adapted model with `layers` of its layers, on the meta device."""
    with torch.device("meta"):
        base = GPT(replace(run.config, num_hidden_layers=layers)).to(DTYPES[run.dtype])
    if run.method == "qlora":
        quantize_model(base)
    config = adapter_config(run)
    return base if config is None else get_peft_model(base, config)


class FusedAttention(TorchFunctionMode):
    """On the meta device, attention as the fused kernels do it: what they save is Q, K, V, the
    output and one number a row, not the (T, S) probabilities."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, k, v, mask = args
        mask = None if mask is None else mask.to(q.dtype)          # (T, S), as the kernel adds it
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(q, k, v, attn_mask=mask)[0]


def saved_bytes(run: Run, layers: int) -> tuple[int, int]:
    """(activations, logits) that autograd keeps with that many layers."""
    model = meta_model(run, layers)
    ids = torch.zeros(run.batch, run.seq, dtype=torch.long, device="meta")
    held = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with FusedAttention():
            logits = model(ids)                                                    # (B, T, V)
            F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    saved = [t for t in saved if t.untyped_storage()._cdata not in held]
    as_wide_as_the_vocabulary = [t for t in saved if t.shape[-1:] == logits.shape[-1:]]
    logits_bytes = nbytes(as_wide_as_the_vocabulary)
    return nbytes(saved) - logits_bytes, logits_bytes


def activation_bytes(run: Run) -> tuple[int, int]:
    """(activations, logits) of the whole model. Every layer saves the same but the first, below
    which an adapter may have nothing to send gradients to."""
    L = run.config.num_hidden_layers
    (two, logits), (three, _) = saved_bytes(run, 2), saved_bytes(run, 3)
    layer = three - two
    rest = two - 2 * layer
    if not run.checkpointing:
        return rest + L * layer, logits
    positions = run.seq + (run.r if run.method == "prompt" else 0)
    boundary = run.batch * positions * run.config.hidden_size * DTYPES[run.dtype].itemsize
    return rest + layer + L * boundary, logits      # one layer at a time is recomputed


def plan(run: Run) -> dict[str, int]:
    """Bytes by kind. ValueError or TypeError as get_peft_model raises them."""
    model = meta_model(run, run.config.num_hidden_layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    adapter = 0 if run.method == "full" else sum(p.nbytes for p in trained)
    layers = [m for m in model.modules() if isinstance(m, NF4Linear)]
    constants = sum(b.nbytes for m in layers for name, b in m.named_buffers() if name != "packed")
    held = {id(t): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    activations, logits = activation_bytes(run)
    return {"weights": sum(held.values()) - adapter - constants,
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
