"""One layer of the GPT as a residual stream, and the place where each method stands on it.

    fig, ax = plt.subplots(figsize=FIGSIZE)
    draw_block(ax)                     the model alone: draw_block(ax, adapters=False)

A map, not a measurement: notebook 01 prints beside it which modules each method replaces. The look
of a method is the one of all figures (figures.LOOKS).
"""
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from ..figures import COLOURS, look

FIGSIZE = (12.0, 6.5)
INK, PALE = COLOURS[0], "#eef3f4"
STREAM = 14.0                                   # height of the residual stream
WIDTH, LINEAR = 30, 7.2                         # of self_attn and mlp, and of a linear in them
LEGEND = {
    "lora": "LoRA: s B A x is added to the output of a linear",
    "qlora": "QLoRA: LoRA, and the linear keeps its weights as 4-bit codes",
    "houlsby": "Houlsby: a bottleneck after self_attn and after mlp",
    "prefix": "prefix: P trained keys and values in front, in every layer",
    "prompt": "soft prompt: P trained vectors in front, after embed_tokens",
}


def draw_block(ax: Axes, adapters: bool = True) -> None:
    """The stream from left to right; attention and MLP read from it and add to it."""
    ax.set(xlim=(0, 134), ylim=(-10 if adapters else 6, 61))
    ax.axis("off")
    box(ax, 21, 8, 94.5, 52, facecolor="none", linestyle="--")
    ax.text(22.5, 58.5, "one layer,\nL times", fontsize=11, va="top", color=INK)
    ax.annotate("", (134, STREAM), (0, STREAM), zorder=1,
                arrowprops=dict(arrowstyle="-|>", linewidth=4, color="#9fb3ba"))
    ax.text(68, STREAM - 3.6, "residual stream x, (B, T, C)", fontsize=10, ha="center", color=INK)
    box(ax, 2, 10, 10.5, 8, "embed_\ntokens")
    ax.text(7.2, 20.5, "ids\n(B, T)", fontsize=10, ha="center", color=INK)
    box(ax, 116.5, 10.5, 6, 7, "norm", size=8)
    box(ax, 124, 10, 7.5, 8, "lm_\nhead")
    ax.text(127.5, 20.5, "logits\n(B, T, V)", fontsize=10, ha="center", color=INK)
    branch(ax, 35.5, "self_attn", "input_\nlayernorm", ["q_proj", "k_proj", "v_proj"],
           "softmax(Q K$^T$ / √D) V", "o_proj", adapters)
    branch(ax, 75.5, "mlp", "post_attention_\nlayernorm", ["gate_proj", "up_proj"],
           "silu(gate) · up", "down_proj", adapters)
    if adapters:
        draw_virtual_tokens(ax)
        draw_legend(ax)


def branch(ax: Axes, left: float, name: str, norm: str, inner: list[str], core: str, last: str,
           adapters: bool) -> None:
    """Up from the stream through norm and module, and down again to where the result is added."""
    middle, out = left + WIDTH / 2, left + WIDTH + 4.5
    step = (WIDTH - 1.8) / len(inner)
    first, below = left + 1 + LINEAR / 2, 29.4 if adapters else 31
    box(ax, left, 25.5, WIDTH, 31, facecolor=PALE)
    ax.text(left + 1, 53.4, name, fontsize=11, weight="bold", color=INK, zorder=5)
    arrow(ax, (left + 6, STREAM), (left + 6, 18.5))
    box(ax, left, 18.5, 12, 5, norm, size=8)
    ax.plot([left + 6] * 2, [23.5, 27.6], color=INK, linewidth=1.3, zorder=4)
    ax.plot([first, first + step * (len(inner) - 1)], [27.6] * 2, color=INK, linewidth=1.3,
            zorder=4)
    for i, linear in enumerate(inner):
        x = first + i * step
        arrow(ax, (x, 27.6), (x, below))
        draw_linear(ax, x, 31, linear, adapters)
        arrow(ax, (x, 36), (x, 38))
    box(ax, left + 1, 38, WIDTH - 2, 4.6, core, size=9)
    arrow(ax, (middle, 42.6), (middle, below + 15.3))
    draw_linear(ax, middle, 46.3, last, adapters)
    ax.plot([middle, middle, out, out], [51.3, 58.2, 58.2, STREAM + 1.6], color=INK,
            linewidth=1.3, zorder=4)
    ax.add_patch(Circle((out, STREAM), 1.7, facecolor="white", edgecolor=INK, zorder=4))
    ax.text(out, STREAM, "+", fontsize=13, ha="center", va="center", color=INK, zorder=5)
    if adapters:
        box(ax, out - 4, 33, 8, 8, "Houlsby", "houlsby", size=9)


def draw_linear(ax: Axes, middle: float, y: float, name: str, adapters: bool) -> None:
    """A linear, W x; with adapters, its codes below it and LoRA's two thin matrices beside it."""
    x = middle - LINEAR / 2
    box(ax, x, y, LINEAR, 5, name, size=8)
    if adapters:
        box(ax, x, y - 1.6, LINEAR, 1.5, "4 bits", "qlora", size=7)
        box(ax, x + LINEAR + 0.1, y, 2, 2.4, "A", "lora", size=7)
        box(ax, x + LINEAR + 0.1, y + 2.6, 2, 2.4, "B", "lora", size=7)


def draw_virtual_tokens(ax: Axes) -> None:
    """What stands in front of the text: in each attention, or once after the embedding."""
    box(ax, 21.9, 36.3, 12.1, 8, "prefix\nkeys, values", "prefix")
    arrow(ax, (34, 40.3), (36.5, 40.3))
    box(ax, 8, -0.5, 11.5, 7, "soft prompt\nP vectors", "prompt")
    arrow(ax, (16.5, 6.5), (16.5, STREAM - 0.5))


def draw_legend(ax: Axes) -> None:
    for i, (method, text) in enumerate(LEGEND.items()):
        x, y = (23, 2 - 5 * i) if i < 3 else (79, 2 - 5 * (i - 3))
        box(ax, x, y, 2.4, 2.4, method=method)
        ax.text(x + 3.6, y + 1.2, text, fontsize=10, va="center", color=INK)


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str = "",
        method: str = "", size: float = 9, **style) -> None:
    """A frame with text; a method's is filled with its colour."""
    style = {"facecolor": look(method)["color"] if method else "white", "edgecolor": INK} | style
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.6",
                                linewidth=0.6 if method else 1.2, zorder=4, **style))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, zorder=5,
            color="white" if method else INK, weight="bold" if method else "normal")


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, linewidth=1.3,
                                 color=INK, shrinkA=0, shrinkB=0, zorder=4))
