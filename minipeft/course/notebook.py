"""What every notebook needs: one way to start, to check, and to show.

    notebook.start()                       first cell: threads, no denormals, one look of figures
    notebook.check("B A", ours, theirs)    ours must equal theirs; prints one line
    notebook.measured("loss", x, 0, 0.1)   x must lie in these bounds; prints its value
    notebook.show(LoraLinear)              the package's source, after the reader has written it
"""
import inspect

import matplotlib.pyplot as plt
import torch
from IPython.display import Code, display
from torch import Tensor

from ..figures import STYLE


class NotDone(Exception):
    """What the student version raises in place of a solution: one sentence, no traceback. Nothing
    more special than Exception: no check may take it for a mistake and name that.

    exercise: "03.2"
    """

    def __init__(self, exercise: str) -> None:
        super().__init__(f"Exercise {exercise} is not done yet: put your answer where it says "
                         f"NotDone.")

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows."""
        return [str(self)]


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
    what = tuple(theirs.shape) if theirs.ndim else number(theirs.item(), ".6g")
    print(f"{name:<44} {what!s:<16} {verdict}")


def measured(name: str, value: float, low: float, high: float, unit: str = "",
             form: str = ".3g") -> None:
    """Print one line with the value; AssertionError if it is outside of [low, high].

    The bounds are what the text needs to stay true on any processor. The value is printed behind
    "~", which notebooks/sanitize.cfg keeps from being compared; a whole number as it is.
    """
    if not low <= value <= high:
        raise AssertionError(f"{name}: {value:{form}} is not between {low:g} and {high:g}")
    print(f"{name:<44} {number(value, form)} {unit}".rstrip())


def number(value: float, form: str) -> str:
    """A whole number as it is, anything else rounded and marked as approximate."""
    return f"{value:,}" if isinstance(value, int) else f"~{value:{form}}"


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs|, in float64; NaN counts as infinitely far."""
    difference = (ours.double() - theirs.double()).abs().nan_to_num(nan=torch.inf)
    return difference.max().item() if difference.numel() else 0.0


def show(thing) -> None:
    """Display the source of a class or function of the package."""
    display(Code(inspect.getsource(thing), language="python"))
