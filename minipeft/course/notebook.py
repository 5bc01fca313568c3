"""What every notebook needs: one way to start, to check, and to show.

    notebook.start()                       first cell: threads, no denormals, one look of figures
    notebook.check("B A", ours, theirs)    ours must equal theirs; prints one line
    notebook.show(LoraLinear)              the package's source, after the reader has written it
"""
import inspect

import matplotlib.pyplot as plt
import torch
from IPython.display import Code, display
from torch import Tensor

from ..figures import STYLE


def start(seed: int = 0, threads: int = 1) -> None:
    """A fixed number of threads and no denormals, so that runs repeat and stay fast; the figures'
    style. More than one thread pays for matrices larger than the tiny GPT's."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    plt.rcParams.update(STYLE)


def check(name: str, ours, theirs, atol: float = 0.0) -> None:
    """Print one line if `ours` equals `theirs`, bitwise or within `atol`; AssertionError if not."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    if ours.shape != theirs.shape:      # not by `assert`, which python -O leaves out
        raise AssertionError(f"{name}: the shapes are {tuple(ours.shape)} and "
                             f"{tuple(theirs.shape)}")
    difference = largest_difference(ours, theirs)
    if not difference <= atol:
        raise AssertionError(f"{name}: the largest difference is {difference:.3g}, above {atol:g}")
    verdict = "equal, bitwise" if atol == 0 else f"equal within {atol:g}"
    print(f"{name:<44} {tuple(ours.shape)!s:<16} {verdict}")


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs|, in float64; NaN counts as infinitely far."""
    difference = (ours.double() - theirs.double()).abs().nan_to_num(nan=torch.inf)
    return difference.max().item() if difference.numel() else 0.0


def show(thing) -> None:
    """Display the source of a class or function of the package."""
    display(Code(inspect.getsource(thing), language="python"))
