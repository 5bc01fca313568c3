"""The pictures of the study of SmolLM2 on tool calls."""
import statistics

from matplotlib.figure import Figure

from ..figures import COLOURS, look, new_figure
from ..recipes import RECIPES
from .tool_calls import KINDS, TRAINING, arc, differences, label, others, report


def curves_figure(found: list[dict]) -> Figure:
    """Validation loss and exact match over the steps, a line a method, mean of its seeds."""
    fig, axes = new_figure(2, figsize=(9.6, 4.0))
    for method, recipe in RECIPES.items():
        style = look(method) | dict(markersize=4, linewidth=1.2)
        loss, exact = arc(found, method, "loss"), arc(found, method, "exact_match")
        if loss:
            axes[0].plot(list(loss), list(loss.values()), label=recipe.label, **style)
            axes[1].plot(list(exact), [100 * share for share in exact.values()], **style)
    axes[0].set(xlabel="step", ylabel="validation loss, nats per token (log scale)", yscale="log")
    axes[1].set(xlabel="step", ylabel="validation requests, all tokens right (%)", ylim=(-3, 103))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def arc_figure(found: list[dict]) -> Figure:
    """What is right first: the share of the validation requests with all tokens of a kind right,
    over the steps, for each method."""
    methods = [method for method in RECIPES if report(found, method)]
    fig, axes = new_figure(max(len(methods), 1), figsize=(2.4 * len(methods) + 1.6, 3.4))
    for ax, method in zip(axes, methods):
        for kind, colour, marker in zip(KINDS, COLOURS, "osD^"):
            points = arc(found, method, kind)
            ax.plot(list(points), [100 * share for share in points.values()], color=colour,
                    marker=marker, markersize=4, linewidth=1.2, label=kind)
        ax.set(title=RECIPES[method].label, xlabel="step", ylim=(-3, 103))
    axes[0].set_ylabel("validation requests with every\ntoken of the kind right (%)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return fig


def sizes_figure(found: list[dict]) -> Figure:
    """Exact match on the test over the number of training examples; a mark a seed, a line through
    the seeds that all sizes have."""
    fig, (ax,) = new_figure()
    sizes = sorted({other["examples"] for _, other in others(found) if "examples" in other})
    for method, recipe in RECIPES.items():
        runs = {n: report(found, method, examples=n) for n in (*sizes, TRAINING)}
        if runs[TRAINING] and any(runs[n] for n in sizes):
            line = {n: 100 * statistics.mean(of[0]["test"]) for n, of in runs.items() if of}
            style = look(method) | dict(markersize=5)
            ax.plot(list(line), list(line.values()), label=recipe.label, **style)
            for n, of in runs.items():
                for r in of[1:]:
                    ax.plot(n, 100 * statistics.mean(r["test"]), **style | dict(linestyle=""))
    ax.set_xscale("log")
    ax.set_xticks([*sizes, TRAINING], [f"{n:,}" for n in (*sizes, TRAINING)])
    ax.minorticks_off()
    ax.set(xlabel="training examples (log scale)", ylabel="exact match on the test (%)",
           ylim=(-3, 103))
    fig.legend(*ax.get_legend_handles_labels(), loc="outside right center")
    return fig


def differences_figure(found: list[dict]) -> Figure:
    """Each pair of methods: the difference, its interval over requests (thick) and over seeds too
    (thin)."""
    names = {label(method) for method in RECIPES}
    shown = [d for d in differences(found) if {d["a"], d["b"]} <= names]
    fig, (ax,) = new_figure(figsize=(7.2, 1.2 + 0.3 * len(shown)))
    for y, d in enumerate(shown):
        for interval, width in ((d["seeds"], 1), (d["requests"], 4)):
            if interval is not None:
                ax.plot([100 * end for end in interval], [y, y], color=COLOURS[1], linewidth=width)
        ax.plot(100 * d["mean"], y, "o", color=COLOURS[0], markersize=5)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(shown)), [f"{d['a']} - {d['b']}" for d in shown])
    ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    ax.set_xlabel("exact match on the test: difference in points, 95 % intervals\n"
                  "(thick: requests drawn anew, thin: seeds too)")
    return fig


PICTURES = {"curves": curves_figure, "arc": arc_figure, "sizes": sizes_figure,
            "differences": differences_figure}
