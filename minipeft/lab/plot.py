"""The pictures of a comparison and of a planned run."""
import statistics
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from ..figures import COLOURS, HATCHES, look, new_figure, save_figure, stacked_bars
from ..recipes import RECIPES
from .summary import forgetting, shares, spread


def labels(methods: list[str]) -> list[str]:
    return [RECIPES[arm].label for arm in methods]


def parameters_figure(results: dict) -> Figure:
    fig, axes = new_figure(2, figsize=(9.0, 3.8))
    methods = results["methods"]
    preset = results["full_size"][methods[0]]["preset"]
    for ax, key, title in zip(axes, ("costs", "full_size"), ("tiny GPT", preset)):
        counts = [results[key][arm]["trainable"] for arm in methods]
        totals = [results[key][arm]["parameters"] for arm in methods]
        bars = ax.bar(labels(methods), counts, color=COLOURS[1])
        ax.bar_label(bars, [percent(n / total) for n, total in zip(counts, totals)],
                     fontsize=8, padding=2)
        ax.set_yscale("log")
        ax.set_ylim(min(counts) / 4, 8 * max(counts))
        ax.set_title(title)
    axes[0].set_ylabel("trainable parameters (log scale)")
    return fig


def memory_figure(results: dict) -> Figure:
    fig, (ax,) = new_figure()
    methods = results["methods"]
    parts = {kind: [results["costs"][arm]["bytes"][kind] / 2**20 for arm in methods]
             for kind in ("weights", "gradients", "optimizer", "activations")}
    stacked_bars(ax, labels(methods), parts)
    ax.set_ylabel(f"MiB in a training step, batch {results['batch']}")
    ax.set_title("Memory to train, counted")
    return fig


def latency_figure(results: dict) -> Figure:
    fig, axes = new_figure(2, figsize=(9.0, 3.8))
    for ax, rows in zip(axes, (1, 32)):
        timings = {RECIPES[arm].label + mark: times[f"{form}, batch {rows}"]
                   for form, mark in (("as trained", ""), ("merged", "\nmerged"))
                   for arm in results["methods"]
                   if f"{form}, batch {rows}" in (times := results["costs"][arm]["latency"])}
        middle = [1e3 * t["median"] for t in timings.values()]
        error = [[1e3 * (t["median"] - t["low"]) for t in timings.values()],
                 [1e3 * (t["high"] - t["median"]) for t in timings.values()]]
        ax.bar(list(timings), middle, yerr=error, capsize=3, color=COLOURS[2],
               edgecolor=COLOURS[0])
        ax.axhline(middle[0], color=COLOURS[0], linestyle=":", linewidth=1)
        ax.tick_params(axis="x", labelrotation=60, labelsize=8)
        ax.set_title(f"batch {rows}, 64 tokens")
    axes[0].set_ylabel("ms a forward pass (median, quartiles)")
    return fig


def quality_figure(results: dict) -> Figure:
    tasks = results["tasks"]
    fig, axes = new_figure(len(tasks), figsize=(4.2 * len(tasks) + 1, 3.8))
    for ax, task in zip(axes, tasks):
        for arm in results["methods"]:
            mean, deviation = spread(shares(results, arm, task))
            ax.errorbar(results["costs"][arm]["trainable"], 100 * mean, yerr=100 * deviation,
                        capsize=4, label=RECIPES[arm].label, **point(arm))
        ax.set_xscale("log")
        ax.set_ylim(-6, 108)
        ax.set_xlabel("trainable parameters (log scale)")
        ax.set_title(task)
    axes[0].set_ylabel(f"learned, % (mean ± sd, {results['seeds']} seeds)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def forgetting_figure(results: dict) -> Figure:
    task = results["tasks"][-1]
    fig, (ax,) = new_figure()
    for arm in results["methods"]:
        runs = [r for r in results["runs"] if (r["arm"], r["task"]) == (arm, task)]
        ax.plot([100 * r["share"] for r in runs], [forgetting(r) for r in runs],
                label=RECIPES[arm].label, **point(arm))
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_ylim(-0.05, 30)
    ax.set_xlim(-6, 106)
    ax.set_xlabel(f"learned of {task}, % (a mark a seed)")
    ax.set_ylabel("rise of the pretraining loss,\nnats per token (linear below 0.1)")
    ax.set_title("Forgetting against learning")
    fig.legend(loc="outside right center")
    return fig


def curves_figure(results: dict) -> Figure:
    task = results["tasks"][-1]
    fig, (ax,) = new_figure()
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
    ax.set_ylabel("training loss, nats per token (mean of seeds)")
    ax.set_title(f"Learning {task}")
    fig.legend(loc="outside right center")
    return fig


def point(arm: str) -> dict:
    """A mark without a line; hollow for QLoRA, which has as many parameters as LoRA."""
    face = "none" if arm == "qlora" else look(arm)["color"]
    return look(arm) | dict(linestyle="", markersize=12 if arm == "qlora" else 8,
                             markerfacecolor=face)


def percent(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g} %"


PICTURES = {"parameters": parameters_figure, "memory": memory_figure, "latency": latency_figure,
            "quality": quality_figure, "forgetting": forgetting_figure, "curves": curves_figure}


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
