"""The pictures of a comparison and of a planned run."""
import math
import statistics
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..figures import COLOURS, HATCHES, look, new_figure, save_figure, stacked_bars
from ..recipes import RECIPES
from ..tiny_world.languages import Languages
from . import capacity, graded
from .summary import served, shares, trained


def labels(methods: list[str]) -> list[str]:
    return [RECIPES[arm].label for arm in methods]


def parameters_figure(results: dict) -> Figure:
    fig, axes = new_figure(2, figsize=(9.0, 3.6))
    methods = results["methods"]
    preset = results["full_size"][methods[0]]["preset"]
    for ax, key, title in zip(axes, ("costs", "full_size"), ("tiny GPT", preset)):
        for y, arm in enumerate(methods):
            count, total = (results[key][arm][name] for name in ("trainable", "parameters"))
            ax.plot(count, y, **point(arm))
            ax.annotate(percent(count / total), (count, y), xytext=(9, -3), fontsize=8,
                        textcoords="offset points")
        ax.set_yticks(range(len(methods)), labels(methods))
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set_xscale("log")
        ax.margins(x=0.25)
        ax.set_xlabel("trained parameters (log scale)")
        ax.set_title(title)
    return fig


def memory_figure(results: dict) -> Figure:
    fig, (ax,) = new_figure()
    methods = results["methods"]
    parts = {kind: [results["costs"][arm]["bytes"][kind] / 2**20 for arm in methods]
             for kind in ("weights", "gradients", "optimizer", "activations")}
    stacked_bars(ax, labels(methods), parts)
    ax.set_ylabel("MiB in a training step of 8 x 192 tokens")
    ax.set_title("Memory to train, counted")
    return fig


def latency_figure(results: dict) -> Figure:
    """Ratios to the unadapted model, a row a form; batch 1 full, batch 32 hollow."""
    fig, axes = new_figure(2, figsize=(9.0, 4.2))
    rows = [(arm, form) for arm in results["methods"] if arm != "full"
            for form in served(results, arm)]
    for ax, phase in zip(axes, ("prefill", "decode")):
        for batch, shift in ((1, -0.13), (32, 0.13)):
            for y, (arm, form) in enumerate(rows):
                ratio = results["costs"][arm]["latency"][f"{form}, {phase}, {batch}"]["ratio"]
                colour = look(arm)["color"]
                ax.errorbar(ratio["median"], y + shift, color=colour, marker=look(arm)["marker"],
                            xerr=[[ratio["median"] - ratio["low"]],
                                  [ratio["high"] - ratio["median"]]], capsize=3, markersize=7,
                            markerfacecolor=colour if batch == 1 else "white")
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_yticks(range(len(rows)), [f"{RECIPES[arm].label}, {form}" for arm, form in rows]
                      if phase == "prefill" else [""] * len(rows))
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel("times the unadapted model's (median, quartiles)")
    axes[0].set_title("prefill: a text of 64 tokens")
    axes[1].set_title("decode: one token against the cache\nfull: batch 1, hollow: batch 32")
    return fig


def quality_figure(results: dict) -> Figure:
    """A small mark a seed, a large one their mean."""
    tasks = results["tasks"]
    fig, axes = new_figure(len(tasks), figsize=(3.6 * len(tasks) + 1.2, 3.8))
    for ax, task in zip(axes, tasks):
        for arm in results["methods"]:
            seeds(ax, arm, results["costs"][arm]["trainable"], shares(results, arm, task))
        landmarks(ax)
        ax.set_title(f"{task}, {results['steps'][task]} steps")
    axes[0].set_ylabel("learned, % (languages: of the bits)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def seeds(ax, arm: str, count: int, learned: list[float], label: bool = True) -> None:
    """What each seed learned, and the mean, over the number of trained parameters."""
    look_ = point(arm) | dict(markersize=10, label=RECIPES[arm].label if label else None)
    ax.plot([count] * len(learned), [100 * share for share in learned],
            **look_ | dict(markersize=4, alpha=0.6, label=None))
    ax.plot(count, 100 * statistics.mean(learned), **look_)


def landmarks(ax) -> None:
    """What can be computed: nothing learned but the format, and everything."""
    for y in (0, 100):
        ax.axhline(y, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_ylim(-8, 108)
    ax.set_xlabel("trained parameters (log scale)")


def graded_figure(runs: list[dict]) -> Figure:
    """The stored study of the languages: what is learned in 200 steps, also at other sizes, and
    what is held at the end."""
    fig, axes = new_figure(2, figsize=(9.6, 4.2))
    for arm in RECIPES:
        sizes = [None, *(size for other, size in graded.OTHER_SIZES if other == arm)]
        found = sorted((trained(runs, arm, size), learned) for size in sizes
                       if (learned := graded.learned(runs, arm, graded.FAST, size)))
        for number, (count, learned) in enumerate(found):
            seeds(axes[0], arm, count, learned, label=number == 0)
        axes[0].plot([count for count, _ in found],
                     [100 * statistics.mean(learned) for _, learned in found],
                     **look(arm) | dict(marker="", linewidth=1))
        steps, last, flat = graded.at_the_end(runs, arm)
        if last and found:
            count = trained(runs, arm)
            seeds(axes[1], arm, count, last, label=False)
            axes[1].annotate(f"{steps:,}" + ("" if flat else ", rising" if last[0] > 0.05 else ""),
                             (count, 100 * statistics.mean(last)), fontsize=8, ha="center",
                             xytext=(0, 8 if arm == "qlora" else -16), textcoords="offset points")
    for ax, title in zip(axes, (f"in {graded.FAST} steps: speed",
                                "at the end (steps: at the marks)")):
        landmarks(ax)
        ax.set_title(title)
    axes[0].set_ylabel("eight new languages: % of 2,145 bits")
    axes[0].annotate("format learned, no translation", (1, 0), xycoords=("axes fraction", "data"),
                     xytext=(0, 3), textcoords="offset points", fontsize=8, ha="right")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def capacity_figure(runs: list[dict]) -> Figure:
    """Bits stored against bits offered, and the steps that half of them took, a line an arm."""
    fig, (stored, speed) = new_figure(2, figsize=(10.4, 4.6))
    for name, arm in capacity.ARMS.items():
        ends = {K: found for K in capacity.OFFERED if (found := capacity.ends(runs, name, K))}
        if ends:
            stored_line(stored, name, ends)
            half = {K: steps for K in ends if (steps := capacity.steps_to_half(runs, name, K))}
            speed.plot(list(half), list(half.values()), label=arm.label, **shade(name))
    bits = [Languages(K).bits for K in capacity.OFFERED]
    stored.plot(bits, bits, color="black", linewidth=0.8)
    stored.annotate("all of it", (bits[-1], bits[-1]), xytext=(-30, -8), ha="right", fontsize=8,
                    textcoords="offset points")
    stored.set(xscale="log", xlabel="bits offered (log scale)",
               ylabel="bits stored (log scale, linear below 100)",
               title="capacity: bits at the end\n(full mark: flat; hollow: still rising)")
    stored.set_yscale("symlog", linthresh=100)
    stored.set_ylim(-30, 2 * bits[-1])
    speed.set(xscale="log", yscale="log", xlabel="languages offered (log scale)",
              ylabel="steps of 32 examples (log scale)",
              title="speed: steps until half\nof the bits are stored")
    speed.set_xticks(capacity.OFFERED, capacity.OFFERED)
    steps = [25 * 2**i for i in range(0, 10, 2)]
    speed.set_yticks(steps, steps)
    speed.minorticks_off()
    fig.legend(*speed.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return fig


def stored_line(ax, name: str, ends: dict[int, list[dict]]) -> None:
    """An arm's bits at each K: a line through the means, a mark a seed."""
    ax.plot([Languages(K).bits for K in ends],
            [statistics.mean(end["bits"] for end in found) for found in ends.values()],
            **shade(name) | dict(marker=""))
    for K, found in ends.items():
        for end in found:
            face = shade(name)["color"] if end["flat"] else "white"
            ax.plot(Languages(K).bits, end["bits"],
                    **shade(name) | dict(linestyle="", markersize=7, markerfacecolor=face))


def shade(name: str) -> dict:
    """An arm's look: the recipe's, and of LoRA darker with the rank, dotted on q and v alone."""
    found = look(capacity.ARMS[name].recipe) | dict(markersize=4, linewidth=1.2)
    if name.startswith("lora"):
        rank = int(name.split("-")[1])
        depth = 0.25 + 0.15 * math.log2(rank)
        line = ":" if name.endswith("qv") else "-"
        found |= dict(color=matplotlib.colormaps["Blues"](min(depth + 0.1, 1.0)), linestyle=line)
    elif name == "houlsby-39":
        found |= dict(linestyle="-")
    return found


def rates_figure(results: dict) -> Figure:
    """Share learned at every rate of every method, from the stored sweep; framed: what is used."""
    tasks, methods = results["tasks"], results["methods"]
    rates = sorted({found["lr"] for found in results["sweep"]})
    fig = Figure(figsize=(9.6, 0.9 + len(tasks) * (0.6 + 0.28 * len(methods))))
    for ax, task in zip(fig.subplots(len(tasks), 1, squeeze=False, sharex=True)[:, 0], tasks):
        table = np.full((len(methods), len(rates)), np.nan)
        for found in results["sweep"]:
            if found["task"] == task:
                at = methods.index(found["arm"]), rates.index(found["lr"])
                table[at] = max(100 * found["share"], 0)
                ax.text(at[1], at[0], f"{round(100 * found['share'])}", ha="center", va="center",
                        fontsize=7, color="white" if table[at] < 55 else "black")
                if found["chosen"]:
                    ax.add_patch(Rectangle((at[1] - 0.5, at[0] - 0.5), 1, 1, fill=False,
                                           edgecolor="#c8553d", linewidth=2))
        ax.imshow(table, vmin=0, vmax=100, aspect="auto", cmap="cividis")
        ax.set_yticks(range(len(methods)), labels(methods), fontsize=8)
        ax.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates], fontsize=7, rotation=45)
        ax.grid(False)
        ax.set_title(f"{task}: learned in {results['steps'][task]} steps, % (mean of the sweep's "
                     f"seeds)", fontsize=9)
    ax.set_xlabel("learning rate")
    return fig


def learned_tasks(results: dict) -> list[str]:
    """The tasks that teach something; all, if none does."""
    found = [task for task in results["tasks"] if task != "elicit"]
    return found if found else results["tasks"]


def forgetting_figure(results: dict) -> Figure:
    """Learning against forgetting: a mark a rate of the stored sweep, a line through a method."""
    tasks = learned_tasks(results)
    fig, axes = new_figure(len(tasks), figsize=(4.4 * len(tasks) + 1.2, 4.2))
    for ax, task in zip(axes, tasks):
        for arm in results["methods"]:
            found = sorted((f["lr"], f["loss"], f["forgetting"]) for f in results["sweep"]
                           if (f["task"], f["arm"]) == (task, arm) and f["loss"] is not None)
            if found:
                _, loss, forgotten = zip(*found)
                ax.plot(loss, forgotten, label=RECIPES[arm].label,
                        **look(arm) | dict(markersize=5, linewidth=1))
        for value in results["floors"][task].values():
            ax.axvline(value, color="black", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_ylim(-0.05, 30)
        ax.invert_xaxis()
        ax.set_xlabel("loss on the task, nats per token (learned: to the right)")
        ax.set_title(f"{task}, {results['steps'][task]} steps")
    axes[0].set_ylabel("forgotten: rise of the loss on stories, facts and\n"
                       "ferries, nats per token (linear below 0.1)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def curves_figure(results: dict) -> Figure:
    tasks = learned_tasks(results)
    fig, axes = new_figure(len(tasks), figsize=(4.4 * len(tasks) + 1.2, 4.0))
    for ax, task in zip(axes, tasks):
        for arm in results["methods"]:
            histories = [r["history"] for r in results["runs"]
                         if (r["arm"], r["task"]) == (arm, task) and r["loss"] is not None]
            mean = [statistics.mean(step) for step in zip(*histories)]
            ax.plot(range(1, len(mean) + 1), mean, label=RECIPES[arm].label,
                    **look(arm) | dict(marker=""))
        for text, value in results["floors"][task].items():
            ax.axhline(value, color="black", linewidth=0.8)
            ax.annotate(f"{text}: {value:.2f}", (1, value), xycoords=("axes fraction", "data"),
                        xytext=(0, 4), textcoords="offset points", fontsize=8, ha="right")
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.set_title(f"learning {task}")
    axes[0].set_ylabel("training loss, nats per token (mean of seeds)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def point(arm: str) -> dict:
    """A mark without a line; hollow for QLoRA, which has as many parameters as LoRA."""
    face = "none" if arm == "qlora" else look(arm)["color"]
    return look(arm) | dict(linestyle="", markersize=12 if arm == "qlora" else 8,
                             markerfacecolor=face)


def percent(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g} %"


PICTURES = {"quality": quality_figure, "rates": rates_figure, "forgetting": forgetting_figure,
            "curves": curves_figure, "parameters": parameters_figure, "memory": memory_figure,
            "latency": latency_figure}


def compare_pictures(results: dict, out: Path) -> list[Path]:
    """Draw and write every picture of a comparison; returns their paths."""
    return [save_figure(partial(draw, results), out / f"{name}.png")
            for name, draw in PICTURES.items()]


def memory_plan_picture(parts: dict[str, int], gpu: float | None, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return save_figure(lambda: memory_plan_figure(parts, gpu), out / "memory.png")


def memory_plan_figure(parts: dict[str, int], gpu: float | None) -> Figure:
    """One stacked bar of a planned run, in GiB, and the card's size as a line."""
    shown = {kind: size / 2**30 for kind, size in parts.items() if size}
    fig, (ax,) = new_figure(figsize=(7.2, 2.6))
    left = 0.0
    for number, (kind, size) in enumerate(shown.items()):
        ax.barh([""], [size], left=left, label=f"{kind} {size:.2f}", edgecolor="white",
                color=COLOURS[number % 5], hatch=HATCHES[(number + number // 5) % 5])
        left += size
    if gpu is not None:
        ax.axvline(gpu, color="black", linestyle="--")
        ax.annotate(f"{gpu:g} GiB card", (gpu, 1), xycoords=("data", "axes fraction"),
                    xytext=(-4, -12), textcoords="offset points", ha="right", fontsize=8)
    ax.set_xlabel(f"GiB, together {left:.2f}")
    fig.legend(loc="outside right center", fontsize=8)
    return fig
