"""Does it fit? Training steps at full size, under a cap that the allocator enforces.

A card of "48 GB" has 48 GiB = 51.5e9 bytes: caps, plans and peaks are in GiB = 2^30 bytes, what
papers claim in GB = 1e9 bytes. The cap binds torch's allocator; the CUDA context and its libraries
lie outside it and are stored as such. All runs: AdamW, checkpointing, LoRA on all linears in
float32, head, embedding and norms as the base's dtype says.
"""
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from minipeft import GPTConfig, figures, get_peft_model
from minipeft.lab.memory import DTYPES, GiB, Run, plan
from minipeft.lab.summary import layout
from minipeft.llm.finetune import recompute_activations
from minipeft.measure import summary
from minipeft.recipes import RECIPES
from minipeft.train import batch_loss

from .shapes import random_gpt, seconds

QLORA = "QLoRA's figure of memory by model size"


@dataclass(frozen=True)
class Case:
    run: Run                        # what the planner is asked and what is then trained
    cap: float | None = None        # GiB that the allocator may take; None: the whole card
    claimed: float | None = None    # GB = 1e9 bytes; None: no published figure
    source: str = "no figure"       # of the claim
    steps: int = 5                  # timed, after one that warms up


def at(preset: str, method: str, r: int = 1, dtype: str = "bf16") -> Run:
    return Run(GPTConfig.preset(preset), method, r, 1, 512, dtype, checkpointing=True)


CASES = {
    "llama-65b QLoRA r=64": Case(at("llama-65b", "qlora", 64), 48, 45.0, QLORA),
    "llama-2-70b QLoRA r=16": Case(at("llama-2-70b", "qlora", 16), 48),
    "llama-33b QLoRA r=64": Case(at("llama-33b", "qlora", 64), 24, 24.7, QLORA),
    "llama-33b QLoRA r=16": Case(at("llama-33b", "qlora", 16), 24),
    "llama-2-7b QLoRA r=64": Case(at("llama-2-7b", "qlora", 64), 16, 6.9, QLORA),
    "llama-2-7b QLoRA r=16": Case(at("llama-2-7b", "qlora", 16), 16),
    "llama-2-7b LoRA r=16": Case(at("llama-2-7b", "lora", 16), 16, None, "a single 16 GB GPU"),
    "llama-2-7b full": Case(at("llama-2-7b", "full", dtype="fp32"), None, 107.8,
                            "16 bytes a parameter"),
}
DRAWN = {"weights": ("weights", "quantization constants"), "adapter": ("adapter",),
         "gradients": ("gradients",), "optimizer": ("optimizer",),
         "activations": ("activations", "logits")}      # what the picture shows as one part
HEADLINES = ("llama-65b QLoRA r=64", "llama-2-7b LoRA r=16", "llama-2-7b full")
TINY = GPTConfig(vocab_size=61, hidden_size=64, intermediate_size=192, num_hidden_layers=3,
                 num_attention_heads=4, num_key_value_heads=2)
SMOKE = {f"tiny {method}": Case(Run(TINY, method, 4, 1, 32, dtype, checkpointing=True), steps=3)
         for method, dtype in (("qlora", "bf16"), ("lora", "bf16"), ("full", "fp32"))}


def measure(case: Case, where: torch.device, folder: Path) -> dict:
    """Bytes and seconds of real steps; `fits` is False, with the reason, where the cap was met."""
    result = {"planned": plan(case.run)}
    if where.type == "cuda":
        result |= set_cap(case.cap)
    try:
        result |= train_steps(case, where)
    except torch.OutOfMemoryError as error:
        result |= {"fits": False, "reason": str(error).splitlines()[0]}
    return result | allocator(result.get("cap_bytes")) if where.type == "cuda" else result


def set_cap(cap: float | None) -> dict:
    """Let the allocator take no more than `cap` GiB; a smaller card caps itself."""
    card = torch.cuda.get_device_properties(0).total_memory
    allowed = card if cap is None else min(round(cap * GiB), card)
    torch.cuda.set_per_process_memory_fraction(allowed / card)
    return {"card_bytes": card, "cap_bytes": allowed,
            "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default")}


def adapted(run: Run, where: torch.device) -> torch.nn.Module:
    """The model of the plan, with memory behind it."""
    recipe = RECIPES[run.method]
    model = random_gpt(run.config, DTYPES[run.dtype], where, recipe.four_bit)
    if run.checkpointing:
        recompute_activations(model)
    return get_peft_model(model, recipe.config(run.r)) if recipe.config else model


def train_steps(case: Case, where: torch.device) -> dict:
    """Forward, backward and AdamW on one random batch, whose loss therefore has to fall."""
    torch.manual_seed(0)
    model, run = adapted(case.run, where).train(), case.run
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()        # from here on: training, not building
    trained = [p for p in model.parameters() if p.requires_grad]
    # fused: the default makes temporary tensors as large as all that is trained
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(run.config.vocab_size, (run.batch, run.seq), device=where)
    losses = []

    def step():
        loss = batch_loss(model, (ids, ids))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    step()
    times = [seconds(step, where) for _ in range(case.steps)]
    assert losses[-1] < losses[0], f"the steps did not train: losses {losses}"
    return {"fits": True, "losses": losses, "seconds_per_step": summary(times).as_dict()}


def allocator(cap: int) -> dict:
    """What torch held at most, and what lies outside it on the card."""
    reserved = torch.cuda.max_memory_reserved()
    assert reserved <= cap, f"the cap of {cap} bytes was not enforced: {reserved} were reserved"
    free, total = torch.cuda.mem_get_info()
    return {"peak_allocated": torch.cuda.max_memory_allocated(), "peak_reserved": reserved,
            "outside_allocator": total - free - torch.cuda.memory_reserved()}


def gib(n_bytes: float | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / GiB:.2f}"


def adapter_text(run: Run) -> str:
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[run.dtype]
    recipe = RECIPES[run.method]
    return (f"no adapter, {dtype}" if recipe.config is None else
            f"float32 adapter on {'NF4 + DQ' if recipe.four_bit else dtype}")


def table(results: dict) -> str:
    """One row a case."""
    header = ["case", "adapter", "cap GiB", "claimed GB", "predicted GiB", "allocated GiB",
              "error", "reserved GiB", "outside GiB", "s a step", "verdict"]
    rows = []
    for name, found in results["cases"].items():
        case, planned = (CASES | SMOKE)[name], sum(found["planned"].values())
        peak = found.get("peak_allocated") if found["fits"] else None
        rows.append([name, adapter_text(case.run), f"{case.cap or '-'}", f"{case.claimed or '-'}",
                     gib(planned), gib(peak), "-" if peak is None else f"{peak / planned - 1:+.1%}",
                     gib(found.get("peak_reserved")), gib(found.get("outside_allocator")),
                     f"{found['seconds_per_step']['median']:.3f}" if found["fits"] else "-",
                     "fits" if found["fits"] else f"did not fit: {found['reason']}"])
    return layout(header, rows)


def figure(results: dict) -> Figure:
    """Planned parts as a stacked bar, the measured peak as a mark, the cap as a line."""
    names = list(results["cases"])
    fig, (ax,) = figures.new_figure(figsize=(3.0 + 0.9 * len(names), 4.6))
    parts = {label: [sum(results["cases"][name]["planned"][kind] for kind in kinds) / GiB
                     for name in names] for label, kinds in DRAWN.items()}
    figures.stacked_bars(ax, [name.replace(" ", "\n") for name in names], parts)
    for i, name in enumerate(names):
        found, cap = results["cases"][name], (CASES | SMOKE)[name].cap
        if found["fits"] and "peak_allocated" in found:
            ax.plot(i, found["peak_allocated"] / GiB, "kD", label="_")
        if cap:
            ax.hlines(cap, i - 0.4, i + 0.4, color="black", linestyle="--")
    ax.set_ylabel("GiB: predicted (bars), peak (diamonds), cap (dashed)", fontsize=9)
    ax.set_title("SMOKE, not evidence" if results["smoke"] else results["machine"]["processor"])
    return fig


# The table of RESULTS.md and README.md: claimed, predicted, measured


@functools.cache
def predicted(run: Run) -> int:
    """Bytes, by the planner."""
    return sum(plan(run).values())


def claim(case: Case) -> str:
    if case.claimed is None:
        return case.source
    return f"{case.claimed} GB = {case.claimed * 1e9 / GiB:.1f} GiB ({case.source})"


def measured(found: dict | None) -> str:
    if found is None:
        return "not measured"
    if not found["fits"]:
        return f"did not fit {gib(found['cap_bytes'])} GiB"
    error = found["peak_allocated"] / sum(found["planned"].values()) - 1
    return (f"**{gib(found['peak_allocated'])} GiB** ({error:+.1%}), fits, "
            f"{found['seconds_per_step']['median']:.2f} s a step")


def markdown(stored: dict[str, dict], names=tuple(CASES)) -> str:
    """`stored`: results by GPU; without any, the column says that nothing was measured."""
    gpus = stored or {"measured": {"cases": {}}}
    header = ["run, 1 x 512 tokens", "adapter", "cap", "claimed", "predicted", *gpus]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name in names:
        case = CASES[name]
        verdict = "" if case.cap is None else (
            ", fits" if predicted(case.run) <= case.cap * GiB else ", does not fit")
        lines.append("| " + " | ".join([
            name, adapter_text(case.run), f"{case.cap} GiB" if case.cap else "none", claim(case),
            f"{gib(predicted(case.run))} GiB{verdict}",
            *(measured(results["cases"].get(name)) for results in gpus.values())]) + " |")
    return "\n".join(lines)
