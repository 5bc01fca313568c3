"""One look for every figure: fixed sizes, units on the axes, readable in greyscale."""
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .files import replacing

STYLE = {
    "figure.figsize": (7.2, 4.0), "figure.dpi": 110, "savefig.dpi": 110, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "axes.axisbelow": True, "legend.frameon": False, "figure.constrained_layout.use": True,
}
# Parts of a whole: lightness rises along the list, and each part has its own hatch.
COLOURS = ["#12324a", "#1f6f8b", "#58a4a0", "#a3c9a8", "#e9d8a6"]
HATCHES = ["", "//", "..", "xx", "--"]
# Methods: colour, marker and line, so that prints without colour can be told apart.
LOOKS = {
    "full": dict(color="#12324a", marker="s", linestyle="-"),
    "lora": dict(color="#1f6f8b", marker="o", linestyle="--"),
    "qlora": dict(color="#58a4a0", marker="D", linestyle=":"),
    "prompt": dict(color="#c8553d", marker="^", linestyle="-."),
    "prefix": dict(color="#e09f3e", marker="v", linestyle=(0, (5, 1))),
    "houlsby": dict(color="#7a5195", marker="P", linestyle=(0, (1, 1))),
}


def new_figure(columns: int = 1, **size) -> tuple[Figure, list]:
    """A figure with `columns` axes side by side, drawn without a display."""
    fig = Figure(**size)
    return fig, list(fig.subplots(1, columns, squeeze=False)[0])


def look(method: str) -> dict:
    """A method's colour, marker and line; those without a look of their own share one."""
    return LOOKS.get(method, dict(color="#6b6b6b", marker="X", linestyle="-"))


def save_figure(draw: Callable[[], Figure], path: Path) -> Path:
    """Draw in the one look and write a PNG; returns its path."""
    with matplotlib.rc_context(STYLE), replacing(path) as part:
        draw().savefig(part, format="png")
    return path


def stacked_bars(ax, names: list[str], parts: dict[str, list[float]]) -> None:
    """Bars on top of each other, one part a colour and hatch."""
    bottom = [0.0] * len(names)
    for (part, values), colour, hatch in zip(parts.items(), COLOURS, HATCHES):
        ax.bar(names, values, bottom=bottom, label=part, color=colour, hatch=hatch,
               edgecolor="white", linewidth=0.6)
        bottom = [b + v for b, v in zip(bottom, values)]
    ax.legend()
