"""What an adapter adds to a forward pass: the shapes of Table 1 of Hu et al. 2021.

GPT-2 medium's size in the Llama dialect: 24 layers, width 1024, 16 heads, tied embeddings. SwiGLU
has three matrices where GPT-2's MLP has two, so its inner width is 2752, the multiple of 64 next to
the 2731 that gives the MLP as many weights. Adapters are in the model's dtype.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from minipeft import GPTConfig, figures, get_peft_model
from minipeft.lab.memory import DTYPES
from minipeft.lab.summary import layout
from minipeft.recipes import RECIPES

from .shapes import in_turn, milliseconds, random_gpt

MEDIUM = GPTConfig(vocab_size=50257, hidden_size=1024, intermediate_size=2752, num_hidden_layers=24,
                   num_attention_heads=16, max_position_embeddings=1024, tie_word_embeddings=True)
TINY = GPTConfig(vocab_size=61, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
                 num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True)
# Hu et al. 2021, Table 1, of an RTX 8000: (batch, tokens): ms of the base (merged LoRA is in the
# same row) and of Adpt-H, Houlsby's adapters. At (1, 128) the base alone varies by 2.7 ms.
PAPER = {(32, 512): (1449.4, 1492.2), (16, 256): (338.0, 366.3), (1, 128): (19.8, 25.8)}


@dataclass(frozen=True)
class Case:
    config: GPTConfig
    dtype: str
    batch: int              # rows
    tokens: int             # of a row
    bottleneck: int         # m of Houlsby's adapters: the table's 0.5M or 11M trained numbers
    rounds: int = 30


CASES = {f"{batch} x {tokens} {dtype}": Case(MEDIUM, dtype, batch, tokens, m)
         for (batch, tokens), m in (((32, 512), 5), ((16, 256), 111), ((1, 128), 111))
         for dtype in ("fp32", "bf16")}
SMOKE = {"2 x 16 fp32": Case(TINY, "fp32", 2, 16, 4, rounds=2)}


def configs(case: Case) -> dict[str, object]:
    """What stands in the model, by the name of the row; None: nothing."""
    def made(method: str, size: int | None = None):
        recipe = RECIPES[method]
        return recipe.config(recipe.llm_size if size is None else size)

    return {"base": None, "LoRA merged": made("lora"), "LoRA": made("lora"),
            "Houlsby": made("houlsby", case.bottleneck), "Prompt": made("prompt"),
            "Prefix": made("prefix"), "NF4 + DQ": None}


def model_of(name: str, config, case: Case, where: torch.device) -> nn.Module:
    dtype = DTYPES[case.dtype]
    model = random_gpt(case.config, dtype, where, four_bit=name.startswith("NF4"))
    if config is not None:
        model = get_peft_model(model, config).to(dtype)
    return (model.merge_and_unload() if name == "LoRA merged" else model).eval()


def measure(case: Case, where: torch.device, folder: Path) -> dict:
    """Seconds of a forward pass with the logits of all positions, the rows taking turns."""
    torch.manual_seed(0)
    models = {name: model_of(name, config, case, where) for name, config in configs(case).items()}
    ids = torch.randint(case.config.vocab_size, (case.batch, case.tokens), device=where)
    with torch.no_grad():
        timings = in_turn({name: lambda model=model: model(ids)
                           for name, model in models.items()}, case.rounds, where)
    trained = {name: sum(p.numel() for p in model.parameters() if p.requires_grad)
               for name, model in models.items() if hasattr(model, "peft_config")}
    return {"seconds": timings, "trained": trained}


def overhead(found: dict, name: str) -> float:
    """Percent of the base's median on top."""
    return 100 * (found["seconds"][name]["median"] / found["seconds"]["base"]["median"] - 1)


def published(found: dict, name: str) -> str:
    """The paper's figure for this row, or "-"."""
    shape = found["settings"]["batch"], found["settings"]["tokens"]
    if shape not in PAPER or name not in ("LoRA merged", "Houlsby"):
        return "-"
    base, houlsby = PAPER[shape]
    return f"{100 * ((houlsby if name == 'Houlsby' else base) / base - 1):+.1f} %"


def table(results: dict) -> str:
    """A block a case; overheads are relative to the base of the same case."""
    header = ["case", "model", "trained", "median ms", "quartiles", "overhead", "LoRA paper"]
    rows = []
    for case, found in results["cases"].items():
        for name, timing in found["seconds"].items():
            rows.append([case, name, f"{found['trained'].get(name, 0):,}", *milliseconds(timing),
                         f"{overhead(found, name):+.1f} %", published(found, name)])
    return layout(header, rows)


def figure(results: dict) -> Figure:
    """Overhead of each model over the base; the error bar is the spread of its own rounds."""
    cases = results["cases"]
    fig, axes = figures.new_figure(len(cases), figsize=(1.2 + 2.6 * len(cases), 4.2))
    for ax, (case, found) in zip(axes, cases.items()):
        base = found["seconds"]["base"]["median"]
        names = [name for name in found["seconds"] if name != "base"]
        times = [found["seconds"][name] for name in names]
        spread = [[100 * abs(t["median"] - t[edge]) / base for t in times]
                  for edge in ("low", "high")]
        ax.bar(names, [overhead(found, name) for name in names], yerr=spread, capsize=3,
               color=figures.COLOURS[2], edgecolor=figures.COLOURS[0])
        ax.tick_params(axis="x", labelrotation=60, labelsize=8)
        ax.set_title(case + (" SMOKE" if results["smoke"] else ""), fontsize=9)
    axes[0].set_ylabel("% of the base's forward pass on top")
    return fig
