"""NF4Linear beside bitsandbytes' Linear4bit, with the same codes, and the dense nn.Linear.

The peer has two ways, and which of them is taken hangs on modes and dtypes:

    forward             eval mode, without gradients: on a CPU with AVX512-BF16 it packs its codes
                        anew, for a kernel that rounds x and W to bfloat16
                        train mode: it dequantizes all of W, for F.linear
    forward + backward  compute_dtype of x, or torch.float32 for a bfloat16 x: W is dequantized
                        twice, and multiplied in that dtype

Ours is compared with the one that is faster in that case.
One layer is called again and again: a small one stays in the caches.
"""
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..figures import COLOURS
from ..measure import ratio, summary
from ..nf4 import NF4Linear
from .turns import OURS, PEER, Build, in_turn

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)      # it names what it could download
try:
    from bitsandbytes.nn import Linear4bit, Params4bit
except ImportError:         # an optional peer: the table then lacks its columns
    Linear4bit = None

EVAL, TRAIN = f"{PEER}, eval mode", f"{PEER}, train mode"
FLOAT32, AS_X = f"{PEER}, compute_dtype float32", f"{PEER}, compute_dtype of x"
DENSE = "torch, dense"
SHAPES = ((576, 576), (576, 1536), (2048, 2048), (4096, 4096), (4096, 11008))      # (out, in)
BATCHES = (1, 8, 32, 128)
TRAINING_SHAPE, TRAINING_BATCHES = (4096, 4096), (128, 512)
QUICK_SHAPE = (512, 512)
THREADS = (1, 2)
DTYPES = (torch.float32, torch.bfloat16)
ERROR_BATCH = 8


@dataclass(frozen=True)
class LayerCase:
    training: bool                 # forward + backward; else the forward alone
    shape: tuple[int, int]
    dtype: torch.dtype             # of x
    batch: int                     # rows of x
    threads: int
    device: str

    def builds(self) -> dict[str, Build]:
        """A contender's layer, called with x."""
        return {name: partial(call_of, name, self) for name in (OURS, *self.peers(), DENSE)}

    def peers(self) -> list[str]:
        if Linear4bit is None:
            return []
        if not self.training:
            return [EVAL, TRAIN]
        return [FLOAT32] if self.dtype == torch.float32 else [FLOAT32, AS_X]


def cases(device: str, quick: bool) -> Iterator[LayerCase]:
    """A layer's cases come one after another, so that it is made once."""
    threads = THREADS if device == "cpu" else (torch.get_num_threads(),)
    for shape, dtype in product((QUICK_SHAPE,) if quick else SHAPES, DTYPES):
        for batch, n_threads in product(BATCHES, threads):
            yield LayerCase(False, shape, dtype, batch, n_threads, device)
    for dtype, batch, n_threads in product(DTYPES, TRAINING_BATCHES, threads):
        shape = QUICK_SHAPE if quick else TRAINING_SHAPE
        yield LayerCase(True, shape, dtype, batch, n_threads, device)


def call_of(name: str, case: LayerCase) -> Callable:
    layer, x = layer_of(name, case.training, case.shape, case.dtype, case.device), rows_of(case)
    if not case.training:
        return torch.inference_mode()(lambda: layer(x))
    grad_y = torch.randn(case.batch, case.shape[0], device=case.device).to(case.dtype)
    x.requires_grad_()

    def forward_backward() -> None:
        x.grad = None
        layer(x).backward(grad_y)
    return forward_backward


@functools.lru_cache(maxsize=2)            # the peer's two; the batch and the threads may vary
def layer_of(name: str, training: bool, shape: tuple[int, int], dtype: torch.dtype,
             device: str) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(*reversed(shape), bias=False, device=device).requires_grad_(False)
    if name == DENSE:
        return linear.to(dtype)
    if name == OURS:
        return NF4Linear.from_linear(linear).train(training)
    layer = peer_layer(linear.weight, torch.float32 if name == FLOAT32 else None)
    return layer.train(name != EVAL)


def peer_layer(weight: Tensor, compute_dtype: torch.dtype | None,
               double_quant: bool = True) -> nn.Module:
    """A Linear4bit, which quantizes as it is moved; compute_dtype None: that of its first x."""
    how = dict(compress_statistics=double_quant, quant_type="nf4")
    layer = Linear4bit(*weight.T.shape, bias=False, compute_dtype=compute_dtype, **how)
    layer.weight = Params4bit(weight.detach(), requires_grad=False, blocksize=64, **how)
    return layer.to(weight.device)


def rows_of(case: LayerCase) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(case.batch, case.shape[1], device=case.device).to(case.dtype)


def run(device: str, quick: bool, pipes: dict, progress: Callable) -> dict:
    """Seconds of every case, ours over the faster of the peer's in each round, and the errors."""
    found = []
    for case in progress(list(cases(device, quick)), desc="layers"):
        rounds = 3 if quick else 7 if case.training else 15
        seconds = in_turn(case, rounds, pipes)
        fastest = min(case.peers(), key=lambda name: median(seconds[name]), default=None)
        found.append({
            "training": case.training, "shape": list(case.shape), "batch": case.batch,
            "dtype": str(case.dtype)[6:], "threads": case.threads, "rounds": rounds,
            "seconds": {name: summary(values).as_dict() for name, values in seconds.items()},
            "ratio": fastest and ratio(seconds[OURS], seconds[fastest]).as_dict()})
    return {"cases": found, "errors": errors(QUICK_SHAPE if quick else TRAINING_SHAPE, device)}


@torch.inference_mode()
def errors(shape: tuple[int, int], device: str) -> dict:
    """|y - W x| / |W x| by x's dtype and contender; W the dequantized weight, W x in float64."""
    found = {}
    for dtype in DTYPES:
        case = LayerCase(False, shape, dtype, ERROR_BATCH, torch.get_num_threads(), device)
        W = layer_of(OURS, False, shape, dtype, device).dequantize().double()
        exact = rows_of(case).double() @ W.T
        ys = {name: build()() for name, build in case.builds().items() if name != DENSE}
        found[str(dtype)[6:]] = {name: float((y - exact).norm() / exact.norm())
                                 for name, y in ys.items()}
    return {"shape": list(shape), "batch": ERROR_BATCH, "relative": found}


def table(results: dict) -> str:
    """A line a case: milliseconds of all, ours over the peer's faster way with quartiles."""
    lines = ["A layer, median ms: NF4Linear, Linear4bit of the same codes in two ways, nn.Linear"]
    for training, heading, ways in ((False, "forward", (EVAL, TRAIN)),
                                    (True, "forward + backward", (FLOAT32, AS_X))):
        columns = ["minipeft", *(way.split(", ")[1] for way in ways), "dense"]
        lines += ["", f"{heading:20}{'batch':>6}{'x':>9}{'threads':>8}"
                      + "".join(f"{column:>22}" for column in columns)
                      + "   minipeft / the faster of bitsandbytes'"]
        lines += [line(case, (OURS, *ways, DENSE)) for case in results["cases"]
                  if case["training"] == training]
    return "\n".join([*lines, "", *error_lines(**results["errors"])])


def line(case: dict, names: tuple[str, ...]) -> str:
    medians = "".join(f"{1e3 * case['seconds'][name]['median']:22.3f}" if name in case["seconds"]
                      else f"{'-':>22}" for name in names)
    found = case["ratio"]
    ratios = (f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})" if found
              else "-")
    return (f"{' x '.join(map(str, case['shape'])):20}{case['batch']:>6}{case['dtype']:>9}"
            f"{case['threads']:>8}{medians}   {ratios}")


def error_lines(shape: list[int], batch: int, relative: dict) -> list[str]:
    lines = [f"Relative error of y = W x against float64, W the dequantized weight, "
             f"{' x '.join(map(str, shape))}, batch {batch}"]
    return lines + [f"  x {dtype:9}" + ", ".join(f"{name} {value:.1e}"
                                                 for name, value in found.items())
                    for dtype, found in relative.items()]


def figure(results: dict) -> Figure:
    """A panel a pass and shape: ours over the peer's faster way by batch, a line a dtype and number
    of threads, bars from quartile to quartile."""
    panels = {}
    for case in results["cases"]:
        panels.setdefault((case["training"], *case["shape"]), []).append(case)
    picture = Figure(figsize=(11.0, 6.4))
    axes = picture.subplots(2, -(-len(panels) // 2), sharey=True, squeeze=False)
    for ax, ((training, *shape), found) in zip(axes.flat, panels.items()):
        ax.axhline(1, color="black", linewidth=0.8)
        draw(ax, found)
        ax.set_title(f"{'forward + backward' if training else 'forward'}, "
                     f"{' x '.join(map(str, shape))}", loc="left", fontsize=9)
    for ax in list(axes.flat)[len(panels):]:
        ax.set_axis_off()
    for row in axes:
        row[0].set_ylabel("minipeft / the faster of bitsandbytes'")
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].legend(fontsize=8)
    return picture


def draw(ax, found: list[dict]) -> None:
    """The lines of one panel, side by side at each batch."""
    batches = sorted({case["batch"] for case in found})
    series = sorted({(case["dtype"], case["threads"]) for case in found}, reverse=True)
    for k, (dtype, threads) in enumerate(series):
        cases = [case for case in found if (case["dtype"], case["threads"]) == (dtype, threads)]
        cases = [case for case in cases if case["ratio"]]
        at = [batches.index(case["batch"]) + 0.16 * (k - (len(series) - 1) / 2) for case in cases]
        middle, low, high = ([case["ratio"][key] for case in cases]
                             for key in ("median", "low", "high"))
        ax.errorbar(at, middle, [[m - edge for m, edge in zip(middle, low)],
                                 [edge - m for m, edge in zip(middle, high)]],
                    color=COLOURS[0 if dtype == "float32" else 2], capsize=2, markersize=4,
                    marker="os"[threads > 1], linestyle=("-", "--")[threads > 1], linewidth=1,
                    label=f"x {dtype}, {threads} thread{'s' * (threads > 1)}")
    ax.set_xticks(range(len(batches)), [f"batch {n}" for n in batches], fontsize=8)
